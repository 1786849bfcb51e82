//! A process that is there, from `/proc`.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;
use std::fs;
use std::io;

use pervma::StdPlatform;

use crate::abi::pages;
use crate::backing::Backing;
use crate::config::{Config, Layout, Limits};
use crate::counts::Counts;
use crate::file::{File, FileFacts, Inode, MapOperation, NAMELESS, Object, OpenFile};
use crate::flags::VmFlags;
use crate::mm::Mm;
use crate::vma::{AnonVma, Source, Vma};

/// What `/proc` does not say of a process, and was inferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    /// The mapping that it concerns; for what concerns all, the addresses that were inferred.
    pub range: Range<usize>,
    /// What was inferred.
    pub what: Inference,
}

/// A kind of what is inferred.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inference {
    /// Where the search for gaps begins: at the end of the highest mapping below the stack.
    MmapBase,
    /// The end of the heap, within its last page, and where there is none, its start. What has been
    /// mapped at its end may have become one mapping with it, and is taken for a part of it.
    Brk,
    /// Whose anonymous pages these are: those of the mapping before it, if that has some, ends here
    /// and continues in the same file or memory; else of no other. None come from a parent. A
    /// mapping that has never had a page has none.
    AnonVma,
    /// The number of the page at which anonymous memory was first mapped: as if it had not moved.
    PageOffset,
    /// The file's facts, other than device and inode: one that can be read, and written if some
    /// mapping of it shows that. Mappings with the same device, inode and path are of one open
    /// file: of several, those would not merge.
    File,
    /// The size of shared anonymous memory: as far as it is mapped. All mappings of it are of one
    /// open file, as if it had not been opened to map it again.
    ObjectSize,
    /// Whether what is mapped from now on is locked (`mlockall` with `MCL_FUTURE`): as
    /// [`Config::future`] was given. That mappings are locked, or not, does not tell.
    Future,
    /// Flags in `smaps` that no call here looks at, by their letters.
    Flags(String),
}

/// Why a process could not be taken over.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProcessError {
    /// A file in `/proc` could not be read, or does not say what it should. This process may trace
    /// the other, or it sees no addresses.
    Proc(io::Error),
    /// The process changes its map all the time. Stop it before.
    Changing,
    /// It has mappings that a call refuses to take over, or that are shown otherwise here: the
    /// first line of `maps` that is not the same.
    Differs(String),
}

impl fmt::Display for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proc(error) => write!(f, "reading /proc: {error}"),
            Self::Changing => f.write_str("the process changes its map while it is read: stop it"),
            Self::Differs(line) => write!(f, "a mapping cannot be taken over: {line}"),
        }
    }
}

impl core::error::Error for ProcessError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Proc(error) => Some(error),
            Self::Changing | Self::Differs(_) => None,
        }
    }
}

impl From<io::Error> for ProcessError {
    fn from(error: io::Error) -> Self {
        Self::Proc(error)
    }
}

impl<B: Backing> Mm<B, StdPlatform> {
    /// Makes an address space as that of a process, from `/proc/PID`, with a list of what those
    /// files do not say and was inferred. Layout, limits and privileges are the process's; the rest
    /// of `config`, which is about the machine, is the caller's.
    ///
    /// The process must not change its map meanwhile; best it is stopped. What was read is read
    /// again, and compared with [`maps`](Self::maps).
    ///
    /// Whether the process has called `mlockall` with `MCL_FUTURE` is for the caller to know, and
    /// to say in [`Config::future`]. Pages of hugetlbfs are taken over as those of any file.
    /// Capabilities in a user namespace other than the first count for nothing here, as in Linux. A
    /// process that has mappings whose names are no UTF-8 is refused.
    ///
    /// ```no_run
    /// use pervma_linux::{Config, Mm, NoBacking};
    ///
    /// let (mm, inferred) = Mm::of_process(4711, NoBacking, Config::default())?;
    /// print!("{}", mm.maps()?);
    /// println!("{} facts are inferred", inferred.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ProcessError`].
    pub fn of_process(
        pid: u32,
        backing: B,
        config: Config,
    ) -> Result<(Self, Vec<Inferred>), ProcessError> {
        let folder = folder_of(pid)?;
        let read = |name| fs::read_to_string(format!("{folder}/{name}"));
        /// A process that runs may leave its map alone for a moment.
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            let (maps, smaps) = (read("maps")?, read("smaps")?);
            let [stat, status, limits] = [read("stat")?, read("status")?, read("limits")?];
            if read("maps")? != maps {
                continue;
            }
            let mut found = Found::default();
            let mappings = found.mappings(&smaps)?;
            let layout = found.layout(&stat, &mappings, config.layout)?;
            found.infer(&(0..layout.task_size), Inference::Future);
            let limits = limits_of_text(&limits)?;
            let config = config.privileged_as(&folder)?;
            let mm = Self::new(backing, Config { layout, limits, ..config });
            for Mapping { range, vma } in mappings {
                let line = format!("{range:x?}");
                mm.adopt(range, vma)
                    .map_err(|error| ProcessError::Differs(format!("{line}: {error}")))?;
            }
            // What is locked may be counted otherwise than mappings show.
            let counts = counts_of_text(&status)?;
            mm.adopt_counts(counts).map_err(|error| ProcessError::Differs(format!("{error}")))?;
            return mm.compare(&maps).map(|()| (mm, found.inferred));
        }
        Err(ProcessError::Changing)
    }

    fn compare(&self, maps: &str) -> Result<(), ProcessError> {
        let here = self.maps().unwrap_or_default();
        let mut here = here.split_terminator('\n');
        for line in maps.split_terminator('\n').filter(|line| !line.ends_with(GATE)) {
            if here.next() != Some(line) {
                return Err(ProcessError::Differs(line.into()));
            }
        }
        Ok(())
    }
}

impl Config {
    /// The same configuration with the privileges of a process or a thread, from `/proc/PID`.
    ///
    /// Capabilities in a user namespace other than the first count for nothing here, as in Linux.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let config = mm.config().with_privileges_of(std::process::id())?;
    /// mm.configure(|now| *now = config)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the files cannot be read, or do not say what they should.
    pub fn with_privileges_of(self, pid: u32) -> io::Result<Self> {
        self.privileged_as(&format!("/proc/{pid}"))
    }

    fn privileged_as(self, folder: &str) -> io::Result<Self> {
        let namespace = fs::read_link(format!("{folder}/ns/user"))?;
        let is_of_machine = namespace.as_os_str() == FIRST_NAMESPACE;
        let capabilities = capabilities(&fs::read_to_string(format!("{folder}/status"))?)?;
        let has = |capability: u32| is_of_machine && capabilities >> capability & 1 != 0;
        Ok(Self {
            may_lock: has(CAP_IPC_LOCK),
            may_map_low: has(CAP_SYS_RAWIO),
            may_poison: has(CAP_SYS_ADMIN),
            may_set_addresses: has(CAP_SYS_RESOURCE),
            ..self
        })
    }
}

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RAWIO: u32 = 17;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// The namespace of users whose capabilities are those of the machine (`PROC_USER_INIT_INO`).
const FIRST_NAMESPACE: &str = "user:[4026531837]";

/// The page of old system calls, which is above everything that can be mapped.
const GATE: &str = "[vsyscall]";

/// Where `/proc` tells of a process: of a thread that has not ended, as the first one may have.
fn folder_of(pid: u32) -> io::Result<String> {
    let first = format!("/proc/{pid}");
    let has_memory = |folder: &str| fs::read(format!("{folder}/maps")).map(|maps| !maps.is_empty());
    if has_memory(&first)? {
        return Ok(first);
    }
    for thread in fs::read_dir(format!("{first}/task"))? {
        let folder = format!("{first}/task/{}", thread?.file_name().to_string_lossy());
        // It may end now.
        if has_memory(&folder).unwrap_or(false) {
            return Ok(folder);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "it has no memory: it has ended, or is the kernel's",
    ))
}

struct Mapping {
    range: Range<usize>,
    vma: Vma,
}

/// What is shared by mappings, as far as it was found, and what was inferred.
#[derive(Default)]
struct Found {
    inferred: Vec<Inferred>,
    files: BTreeMap<(Inode, String), Arc<OpenFile<StdPlatform>>>,
    objects: BTreeMap<u64, Arc<Object>>,
    anon_vmas: u64,
    heap_end: Option<usize>,
}

/// A mapping in the text of `smaps`.
struct Section<'a> {
    range: Range<usize>,
    offset: usize,
    device: (u32, u32),
    inode: u64,
    name: &'a str,
    flags: &'a str,
    /// Whether some page is anonymous, in memory or in swap.
    has_anon: bool,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what:?} is not what it should be"))
}

fn hex<N: TryFrom<u64>>(text: &str) -> io::Result<N> {
    let number = u64::from_str_radix(text, 16).map_err(|_| wrong(text))?;
    N::try_from(number).map_err(|_| wrong(text))
}

impl<'a> Section<'a> {
    /// The first line: range, access, offset, device, inode and name.
    fn of_line(line: &'a str) -> io::Result<Self> {
        let wrong = || wrong(line);
        let mut fields = line.splitn(6, ' ');
        let mut field = || fields.next().ok_or_else(wrong);
        let (start, end) = field()?.split_once('-').ok_or_else(wrong)?;
        let _access = field()?;
        let offset = hex(field()?)?;
        let (major, minor) = field()?.split_once(':').ok_or_else(wrong)?;
        let inode = field()?.parse().map_err(|_| wrong())?;
        let name = fields.next().unwrap_or_default().trim_start();
        let (range, device) = (hex(start)?..hex(end)?, (hex(major)?, hex(minor)?));
        Ok(Self { range, offset, device, inode, name, flags: "", has_anon: false })
    }

    /// All of them, but for the page of old system calls.
    fn all(smaps: &'a str) -> io::Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        // A name may end with a carriage return, which `lines` takes off.
        for line in smaps.split_terminator('\n') {
            let key = line.split(' ').next().unwrap_or_default();
            let Some(key) = key.strip_suffix(':') else {
                all.push(Self::of_line(line)?);
                continue;
            };
            let section = all.last_mut().ok_or_else(|| wrong(line))?;
            let value = line[key.len() + 1..].trim();
            match key {
                "VmFlags" => section.flags = value,
                "Anonymous" | "Swap" => section.has_anon |= value != "0 kB",
                _ => {}
            }
        }
        all.retain(|section| section.name != GATE);
        Ok(all)
    }
}

impl Found {
    fn infer(&mut self, range: &Range<usize>, what: Inference) {
        self.inferred.push(Inferred { range: range.clone(), what });
    }

    fn mappings(&mut self, smaps: &str) -> io::Result<Vec<Mapping>> {
        let sections = Section::all(smaps)?;
        for section in sections.iter().filter(|section| is_object(section)) {
            let end = section.offset + (section.range.end - section.range.start);
            let size = self.objects.get(&section.inode).map_or(0, |object| object.size).max(end);
            self.objects.insert(section.inode, Arc::new(Object { number: section.inode, size }));
        }
        let mut mappings: Vec<Mapping> = Vec::new();
        for section in &sections {
            let flags = self.flags(section);
            let (source, name) = self.source(section, flags);
            let page_offset = match source {
                Source::Anonymous => pages(section.range.start) as u64,
                Source::Special(_) => 0,
                _ => pages(section.offset) as u64,
            };
            let mut vma = Vma { flags, page_offset, source, anon: None, name };
            if section.has_anon && flags.is_private() {
                let before = mappings.last().filter(|before| {
                    before.range.end == section.range.start
                        && before.vma.source == vma.source
                        && before.vma.page_after(before.range.end - before.range.start)
                            == vma.page_offset
                });
                let shared = before.and_then(|before| before.vma.anon);
                vma.anon = Some(shared.unwrap_or_else(|| {
                    self.anon_vmas += 1;
                    AnonVma { number: self.anon_vmas, from_parent: false }
                }));
            }
            if flags.is_private() && flags.has(VmFlags::MAYWRITE) {
                self.infer(&section.range, Inference::AnonVma);
            }
            if vma.anon.is_some() && matches!(vma.source, Source::Anonymous) {
                self.infer(&section.range, Inference::PageOffset);
            }
            if section.name == "[heap]" {
                self.heap_end = Some(section.range.end);
            }
            mappings.push(Mapping { range: section.range.clone(), vma });
        }
        Ok(mappings)
    }

    fn flags(&mut self, section: &Section<'_>) -> VmFlags {
        let mut flags = VmFlags::default();
        let mut unknown = Vec::new();
        for letters in section.flags.split_ascii_whitespace() {
            match VmFlags::from_str(letters) {
                Ok(flag) => flags |= flag,
                Err(_) => unknown.push(letters),
            }
        }
        if !unknown.is_empty() {
            self.infer(&section.range, Inference::Flags(unknown.join(" ")));
        }
        flags
    }

    fn source(&mut self, section: &Section<'_>, flags: VmFlags) -> (Source, Option<Arc<str>>) {
        let bracketed = |start: &str| section.name.strip_prefix(start)?.strip_suffix(']');
        if is_object(section) {
            self.infer(&section.range, Inference::ObjectSize);
            let object = Arc::clone(&self.objects[&section.inode]);
            return (Source::SharedAnonymous(object), bracketed("[anon_shmem:").map(Arc::from));
        }
        if section.inode == 0 && section.device == (0, 0) {
            let name = bracketed("[anon:").map(Arc::from);
            let is_special = name.is_none() && !matches!(section.name, "" | "[heap]" | "[stack]");
            let source =
                if is_special { Source::Special(section.name.into()) } else { Source::Anonymous };
            return (source, name);
        }
        self.infer(&section.range, Inference::File);
        let path = section.name.replace("\\012", "\n");
        let is_zero = path == "/dev/zero";
        let facts = FileFacts {
            writable: false,
            device: section.device,
            inode: section.inode,
            operation: if is_zero { MapOperation::Zero } else { MapOperation::Accepts },
            ..FileFacts::new()
        };
        let new = || Arc::new(OpenFile::new(path.clone(), facts));
        let open = self
            .files
            .entry((Inode { device: section.device, number: section.inode }, path.clone()))
            .or_insert_with(new);
        if flags.has(VmFlags::MAYSHARE | VmFlags::MAYWRITE) {
            open.update(|facts| facts.writable = true);
        }
        let file: Arc<dyn File> = Arc::<OpenFile<StdPlatform>>::clone(open);
        (if is_zero { Source::Zero(file) } else { Source::File(file) }, None)
    }

    fn layout(
        &mut self,
        stat: &str,
        mappings: &[Mapping],
        machine: Layout,
    ) -> Result<Layout, ProcessError> {
        // The first field here is the state, the third of all, which follows the name in
        // parentheses.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let fields: Vec<usize> = fields.map(|field| field.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let [start_code, end_code, start_stack] = [26, 27, 28].map(field);
        let [start_data, end_data, start_brk] = [45, 46, 47].map(field);
        let [arg_start, arg_end, env_start, env_end] = [48, 49, 50, 51].map(field);
        if start_stack == 0 {
            let error = "its addresses are shown to those who may trace it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, error).into());
        }
        let stack = mappings.iter().position(|mapping| mapping.range.contains(&start_stack));
        let below = &mappings[..stack.unwrap_or(mappings.len())];
        let mmap_base = below.last().map_or(machine.mmap_base, |mapping| mapping.range.end);
        self.infer(&(mmap_base..mmap_base), Inference::MmapBase);
        let brk = self.heap_end.unwrap_or(start_brk);
        self.infer(&(start_brk..brk), Inference::Brk);
        Ok(Layout {
            mmap_base,
            start_code,
            end_code,
            start_data,
            end_data,
            start_brk,
            brk,
            start_stack,
            arg_start,
            arg_end,
            env_start,
            env_end,
            ..machine
        })
    }
}

/// Shared anonymous memory has a file without a name, which `maps` shows so.
fn is_object(section: &Section<'_>) -> bool {
    section.name == NAMELESS || section.name.starts_with("[anon_shmem:")
}

/// The limits in the text of `limits`: soft ones, and the hard one of data.
fn limits_of_text(text: &str) -> io::Result<Limits> {
    let limits = |name: &str| -> io::Result<[u64; 2]> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let mut values = line.ok_or_else(|| wrong(name))?.split_ascii_whitespace();
        let mut value = || match values.next() {
            Some("unlimited") => Ok(u64::MAX),
            value => value.and_then(|value| value.parse().ok()).ok_or_else(|| wrong(name)),
        };
        Ok([value()?, value()?])
    };
    let [data, data_max] = limits("Max data size")?;
    Ok(Limits {
        address_space: limits("Max address space")?[0],
        data,
        data_max,
        locked: limits("Max locked memory")?[0],
        stack: limits("Max stack size")?[0],
    })
}

/// The counts in the text of `status`, which are in units of 1024 bytes there.
fn counts_of_text(status: &str) -> io::Result<Counts> {
    let count = |name: &str| -> io::Result<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_ascii_whitespace().next());
        let bytes = value.and_then(|value| value.parse::<usize>().ok()?.checked_mul(1024));
        bytes.map(pages).ok_or_else(|| wrong(name))
    };
    Ok(Counts {
        total: count("VmSize:")?,
        data: count("VmData:")?,
        stack: count("VmStk:")?,
        exec: count("VmExe:")? + count("VmLib:")?,
        locked: count("VmLck:")?,
    })
}

/// The capabilities that count, in the text of `status`.
fn capabilities(status: &str) -> io::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex(line.ok_or_else(|| wrong("CapEff"))?.trim())
}
