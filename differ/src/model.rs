//! The model that is compared with the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pervma_linux::{
    Access, Backing, Config, Counts, Errno, File, Limits, Mm, Part, Refusal, Source, Vma, abi,
};

use crate::child::{CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RAWIO, CODE, InitialState, Special};
use crate::files::{OpenFiles, Opened};
use crate::machine::Machine;
use crate::op::{NAMES, Op, Which};
use crate::outcome::Outcome;

/// A model that makes steps, to be compared with the kernel.
pub trait Subject {
    /// Takes over a mapping that the process has from the start.
    fn adopt(&mut self, special: &Special);

    /// Makes a step, and returns its outcome.
    fn step(&mut self, op: &Op) -> Outcome;

    /// Returns the map as `/proc/PID/maps` shows it.
    fn maps(&self) -> String;

    /// Returns the flags of each mapping, in order of address.
    fn flags(&self) -> Vec<String>;

    /// Returns the counts of pages.
    fn counts(&self) -> Counts;

    /// Returns the limits.
    fn limits(&self) -> Limits;

    /// Returns the mappings, on which the next step is generated.
    fn vmas(&self) -> Vec<(Range<usize>, Vma)>;

    /// Returns the map of the last child that was looked at and has ended.
    fn ended_child(&self) -> &str;
}

/// An [`Mm`] with files that end and with guard pages.
#[derive(Debug)]
pub struct Model {
    mm: Mm<Pages, pervma_linux::StdPlatform>,
    files: Vec<Option<Arc<Opened>>>,
    ended_child: String,
}

/// The guard pages, and those of the kernel's own mappings that are not there, by its name.
#[derive(Debug, Default)]
struct Pages {
    guards: Mutex<BTreeSet<usize>>,
    absent: Arc<Mutex<BTreeMap<Arc<str>, BTreeSet<u64>>>>,
}

impl Pages {
    fn with<R>(&self, look: impl FnOnce(&mut BTreeSet<usize>) -> R) -> R {
        look(&mut self.guards.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, range: Range<usize>) -> Vec<usize> {
        self.with(|guards| {
            let taken: Vec<usize> = guards.range(range).copied().collect();
            taken.iter().for_each(|page| _ = guards.remove(page));
            taken
        })
    }
}

impl Backing for Pages {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        let pages = (part.range.end - part.range.start) / abi::PAGE;
        let size = match &part.vma.source {
            Source::SharedAnonymous(object) => object.size / abi::PAGE,
            _ => Opened::of(part.vma).map_or(usize::MAX, Opened::pages),
        };
        let first = usize::try_from(part.page_offset).unwrap_or(usize::MAX);
        let is_absent = match &part.vma.source {
            Source::Special(name) => {
                let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
                let touched = part.page_offset..part.page_offset + pages as u64;
                absent.get(name).is_some_and(|absent| absent.range(touched).next().is_some())
            }
            _ => false,
        };
        // A guard page is met before the file is asked.
        if let Some(addr) = self.with(|guards| guards.range(part.range).next().copied()) {
            Err(Refusal::Guard { addr })
        } else if is_absent || pages > size.saturating_sub(first) && !part.vma.is_anonymous() {
            Err(Refusal::Bus)
        } else {
            Ok(())
        }
    }

    fn unmap(&self, range: Range<usize>) {
        self.take(range);
    }

    fn relocate(&self, from: Range<usize>, to: usize) {
        let start = from.start;
        let moved = self.take(from);
        self.with(|guards| guards.extend(moved.iter().map(|page| page - start + to)));
    }

    fn copy(&self, part: Part<'_>, child: &Self) {
        let copied: Vec<usize> = self.with(|guards| guards.range(part.range).copied().collect());
        child.with(|guards| guards.extend(copied));
    }

    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        match advice {
            abi::MADV_GUARD_INSTALL => {
                self.with(|guards| guards.extend(part.range.step_by(abi::PAGE)));
            }
            abi::MADV_GUARD_REMOVE => _ = self.take(part.range),
            // The process has no huge pages.
            abi::MADV_COLLAPSE => return Err(Errno::EINVAL),
            abi::MADV_REMOVE => {
                let pages = (part.range.end - part.range.start) / abi::PAGE;
                let end = part.page_offset.saturating_add(pages as u64);
                return Opened::of(part.vma).map_or(Ok(()), |file| file.punch(end));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Model {
    /// Makes the model of a process that has just been started.
    #[must_use]
    pub fn new(config: &Config, files: &OpenFiles) -> Self {
        let mm = Mm::new(Pages::default(), config.clone());
        let mut model = Self { mm, files: files.to_vec(), ended_child: String::new() };
        let flags = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS | abi::MAP_FIXED;
        let all = abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC;
        let prot = abi::PROT_READ | abi::PROT_EXEC;
        let code = Op::Mmap { addr: CODE, len: abi::PAGE, prot: all, flags, file: None, offset: 0 };
        for op in [
            code,
            Op::Touch { addr: CODE, access: Access::Write },
            Op::Mprotect { addr: CODE, len: abi::PAGE, prot },
        ] {
            model.step(&op);
        }
        model
    }

    /// The file with this number, if it is open.
    fn file(&self, number: usize) -> Result<&Arc<Opened>, Errno> {
        self.files.get(number).and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    fn fork(&mut self, child_goes_on: bool) -> Result<(), Errno> {
        let absent = Arc::clone(&self.mm.backing().absent);
        let child = self.mm.fork(Pages { absent, ..Pages::default() })?;
        if child_goes_on {
            self.mm = child;
        } else {
            self.ended_child = child.maps()?;
        }
        Ok(())
    }

    fn set_limit(&self, which: Which, bytes: u64) {
        let limits = self.mm.limits();
        self.mm.set_limits(match which {
            Which::AddressSpace => Limits { address_space: bytes, ..limits },
            Which::Data => Limits { data: bytes, ..limits },
            Which::DataMax => Limits { data: limits.data.min(bytes), data_max: bytes, ..limits },
            Which::Locked => Limits { locked: bytes, ..limits },
            Which::Stack => Limits { stack: bytes, ..limits },
        });
    }
}

impl Subject for Model {
    fn adopt(&mut self, special: &Special) {
        let Special { range, flags, name, absent } = special;
        let source = Source::Special(Arc::clone(name));
        let vma = Vma { flags: *flags, page_offset: 0, source, anon: None, name: None };
        // It cannot fail; if it did, the map would be a difference.
        let _ = self.mm.adopt(range.clone(), vma);
        let all = &self.mm.backing().absent;
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(Arc::clone(name), absent.clone());
    }

    fn step(&mut self, op: &Op) -> Outcome {
        let mm = &self.mm;
        Outcome::done(match *op {
            Op::Mmap { addr, len, prot, flags, file, offset } => {
                let file = file.and_then(|file| self.file(file).ok());
                let file = file.map(|file| Arc::clone(file) as Arc<dyn File>);
                return Outcome::of(mm.mmap(addr, len, prot, flags, file.as_ref(), offset));
            }
            Op::Munmap { addr, len } => mm.munmap(addr, len),
            Op::Mprotect { addr, len, prot } => mm.mprotect(addr, len, prot),
            Op::PkeyMprotect { addr, len, prot, key } => mm.pkey_mprotect(addr, len, prot, key),
            Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                return Outcome::of(mm.mremap(addr, old_len, new_len, flags, new_addr));
            }
            Op::Madvise { addr, len, advice } => mm.madvise(addr, len, advice),
            Op::Mlock { addr, len } => mm.mlock(addr, len),
            Op::Mlock2 { addr, len, flags } => mm.mlock2(addr, len, flags),
            Op::Munlock { addr, len } => mm.munlock(addr, len),
            Op::Mlockall { flags } => mm.mlockall(flags),
            Op::Munlockall => mm.munlockall(),
            Op::Brk { addr } => return Outcome::of(Ok(mm.brk(addr))),
            Op::Mseal { addr, len, flags } => mm.mseal(addr, len, flags),
            Op::Msync { addr, len, flags } => mm.msync(addr, len, flags),
            Op::Mincore { addr, len, vector } => mm.mincore(addr, len, vector),
            Op::Name { addr, len, name } => {
                mm.set_anon_name(addr, len, name.and_then(|name| NAMES.get(name).copied()))
            }
            Op::Touch { addr, access } => return Outcome::Touched(mm.fault(addr, access)),
            Op::Force { addr, access } => mm.access_forced(addr, access),
            Op::Fork { child_goes_on } => match self.fork(child_goes_on) {
                Ok(()) => return Outcome::Done,
                Err(error) => Err(error),
            },
            Op::Limit { which, bytes } => {
                self.set_limit(which, bytes);
                return Outcome::Done;
            }
            Op::AddSeals { file, seals } => {
                let vmas = self.vmas().into_iter().map(|(_, vma)| vma);
                self.file(file).and_then(|file| file.add_seals(seals, vmas))
            }
            Op::Truncate { file, pages } => self.file(file).and_then(|file| file.truncate(pages)),
            Op::Rename { file, name } => self.file(file).and_then(|file| file.rename(Some(name))),
            Op::Unlink { file } => self.file(file).and_then(|file| file.rename(None)),
        })
    }

    fn maps(&self) -> String {
        // It cannot fail; if it did, the text would be a difference.
        self.mm.maps().unwrap_or_else(|error| error.to_string())
    }

    fn flags(&self) -> Vec<String> {
        self.vmas().iter().map(|(_, vma)| vma.flags.to_string()).collect()
    }

    fn counts(&self) -> Counts {
        self.mm.counts()
    }

    fn limits(&self) -> Limits {
        self.mm.limits()
    }

    fn vmas(&self) -> Vec<(Range<usize>, Vma)> {
        let mut all = Vec::new();
        let seen = self.mm.for_each(|range, vma| all.push((range, vma.clone())));
        debug_assert_eq!(seen, Ok(()), "no call is under way");
        all
    }

    fn ended_child(&self) -> &str {
        &self.ended_child
    }
}

/// The configuration of a new process on this machine.
pub(crate) fn config(initial: &InitialState, machine: &Machine) -> Config {
    Config {
        layout: initial.layout,
        limits: initial.limits,
        max_map_count: machine.max_map_count,
        commit_limit: machine.commit_limit,
        may_lock: initial.has(CAP_IPC_LOCK),
        may_map_low: initial.has(CAP_SYS_RAWIO),
        may_poison: initial.has(CAP_SYS_ADMIN),
        anon_names: machine.anon_names,
        huge_pages: machine.huge_pages,
        memory_failure: machine.memory_failure,
        marks_guards: initial.marks_guards,
        ..Config::default()
    }
}
