//! A personality: a program for Linux runs, and where its memory lies is decided here, not by the
//! kernel: `cargo run -p library_os -- PROGRAM ARGUMENTS`.
//!
//! The program is traced (`host.rs`). A filter stops each of its threads where it makes a mapping
//! call, and at no other call. The call is made on an [`Mm`], which says what it returns and what
//! is mapped then. Only what that allows is made on the host, at the address that it has chosen. So
//! the memory is real, pages are touched at full speed, and the kernel is never asked to choose.
//!
//! What the program sees is another Linux: its memory is placed below 64 TiB, `RLIMIT_AS` is one of
//! its own, and a call that fails changes nothing ([`Config::strict`]), which is so in no kernel.
//!
//! Two orders have to agree: in which calls change the `Mm`, and in which the host's memory
//! changes. Where a thread has unmapped something in the one and not yet in the other, the next
//! `mmap` may be given these addresses, and then lose them. So a call is finished on the host
//! before the next one begins, as under the kernel's own `mmap_lock`. Threads that make no mapping
//! call are not held up.
//!
//! A fork would take an `Mm` for each process ([`Mm::fork`]), and this one traces a single process:
//! mapping calls of its children fail with `ENOSYS`.
//!
//! Without arguments the program is this one again (`guest.rs`): four threads that check what they
//! are given. In the end both maps must have the same pages.

mod guest;
mod host;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use pervma_linux::{
    Config, Errno, File, FileFacts, Layout, Limits, Mm, NoBacking, OpenFile, StdPlatform, abi::*,
};

use crate::host::{Call, Event, Host, Thread};

/// The end of the addresses that are chosen for the program. The kernel's are above it.
const TOP: usize = 1 << 46;
/// The program's `RLIMIT_AS`.
const LIMIT: u64 = 64 << 30;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What the program has instead of the kernel.
struct Personality {
    mm: Mm<NoBacking, StdPlatform>,
    /// Files that were mapped, by what identifies them and how they are open.
    files: BTreeMap<(u64, u64, String, bool), Arc<dyn File>>,
    calls: BTreeMap<&'static str, usize>,
}

/// What is done with a call, when the `Mm` has decided.
enum Deed {
    /// It returns this, and nothing happens on the host.
    Returns(usize),
    /// The host makes this call, and then it returns this.
    Host(i64, [usize; 6], usize),
}

impl Personality {
    /// Takes over what the kernel has mapped to start the program, with another layout.
    fn of(host: &Host) -> Result<Self> {
        let (there, _) = Mm::of_process(host.id(), NoBacking, Config::default())?;
        let config = there.config();
        let layout = Layout { mmap_base: TOP, ..config.layout };
        let limits = Limits { address_space: LIMIT, ..config.limits };
        let mm = Mm::new(NoBacking, Config { layout, limits, strict: true, ..config });
        let mut taken = Ok(());
        there.for_each(|range, vma| taken = taken.and(mm.adopt(range, vma.clone())))?;
        taken?;
        Ok(Self { mm, files: BTreeMap::new(), calls: BTreeMap::new() })
    }

    /// Serves one call of a thread, on the `Mm` and then on the host.
    fn serve(&mut self, host: &Host, thread: Thread, call: &Call) -> Result<()> {
        *self.calls.entry(host::name(call.number)).or_default() += 1;
        let heap = self.mm.brk(0);
        let result = match self.decide(host, call) {
            Err(error) => -i64::from(error.number()),
            Ok(Deed::Returns(value)) => i64::try_from(value)?,
            Ok(Deed::Host(number, arguments, value)) => {
                let done = host.make(thread, number, arguments.map(|word| word as u64))?;
                if (-4095..0).contains(&done) {
                    self.give_up(call, value, heap)?.unwrap_or(done)
                } else {
                    // `brk` is made of other calls, which return something else.
                    i64::try_from(value)?
                }
            }
        };
        host.resume(thread, call, result)
    }

    /// Makes the call on the `Mm`, and says what the host has to do then.
    fn decide(&mut self, host: &Host, call: &Call) -> Result<Deed, Errno> {
        let Call { number, arguments } = call;
        let words = arguments.map(|word| usize::try_from(word).unwrap_or(usize::MAX));
        let [addr, len, third, fourth, fifth, sixth] = words;
        let [_, _, prot, flags, _, offset] = *arguments;
        // The lower half of a register.
        let int = |word: usize| word as u32 as i32;
        let mm = &self.mm;
        match *number {
            libc::SYS_mmap => {
                let file = self.file(host, int(fifth));
                let at = self.mm.mmap(addr, len, prot, flags, file.as_ref(), offset)?;
                // The place is free, or is to be replaced: there is nothing left to be chosen.
                let fixed = flags & !MAP_FIXED_NOREPLACE | MAP_FIXED;
                let fixed = usize::try_from(fixed).unwrap_or(usize::MAX);
                return Ok(Deed::Host(*number, [at, len, third, fixed, fifth, sixth], at));
            }
            libc::SYS_mremap => {
                let to = mm.mremap(addr, len, third, fourth as u64, fifth)?;
                let moves = to != addr || fourth as u64 & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0;
                let fixed = fourth as u64 & MREMAP_DONTUNMAP | MREMAP_MAYMOVE | MREMAP_FIXED;
                let flags = if moves { usize::try_from(fixed).unwrap_or(0) } else { 0 };
                return Ok(Deed::Host(*number, [addr, len, third, flags, to, 0], to));
            }
            libc::SYS_brk => return Ok(self.brk(addr)),
            libc::SYS_munmap => mm.munmap(addr, len)?,
            libc::SYS_mprotect => mm.mprotect(addr, len, prot)?,
            libc::SYS_pkey_mprotect => mm.pkey_mprotect(addr, len, prot, int(fourth))?,
            libc::SYS_madvise => mm.madvise(addr, len, int(third))?,
            libc::SYS_mlock => mm.mlock(addr, len)?,
            libc::SYS_mlock2 => mm.mlock2(addr, len, int(third))?,
            libc::SYS_munlock => mm.munlock(addr, len)?,
            libc::SYS_mlockall => mm.mlockall(int(addr))?,
            libc::SYS_munlockall => mm.munlockall()?,
            host::SYS_MSEAL => mm.mseal(addr, len, prot)?,
            // These map something that the `Mm` does not know of.
            _ => return Err(Errno::EPERM),
        }
        Ok(Deed::Host(*number, words, 0))
    }

    /// The host has no heap of its own: it is memory that is mapped where the `Mm` says.
    fn brk(&self, addr: usize) -> Deed {
        let page = |addr: usize| addr.next_multiple_of(PAGE);
        let old = self.mm.brk(0);
        let new = self.mm.brk(addr);
        let (below, above) = (page(old.min(new)), page(old.max(new)));
        if below == above {
            return Deed::Returns(new);
        }
        let (prot, flags) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED);
        let words = [prot, flags].map(|word| usize::try_from(word).unwrap_or(0));
        let len = above - below;
        if old < new {
            let arguments = [below, len, words[0], words[1], usize::MAX, 0];
            Deed::Host(libc::SYS_mmap, arguments, new)
        } else {
            Deed::Host(libc::SYS_munmap, [below, len, 0, 0, 0, 0], new)
        }
    }

    /// What was mapped is not there if the host refuses it: the file may, or there is no memory.
    /// Returns the result, if it is not the host's error.
    fn give_up(&self, call: &Call, at: usize, heap: usize) -> Result<Option<i64>> {
        match call.number {
            libc::SYS_mmap => self.mm.munmap(at, usize::try_from(call.arguments[1])?)?,
            libc::SYS_brk => return Ok(Some(i64::try_from(self.mm.brk(heap))?)),
            _ => {}
        }
        Ok(None)
    }

    /// The open file behind a descriptor of the program, as far as mappings go by it.
    fn file(&mut self, host: &Host, descriptor: i32) -> Option<Arc<dyn File>> {
        let link = format!("/proc/{}/fd/{descriptor}", host.id());
        let path = fs::read_link(&link).ok()?.to_string_lossy().into_owned();
        let about = fs::metadata(&link).ok()?;
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", host.id())).ok()?;
        let mode = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let mode = i32::from_str_radix(mode.trim(), 8).ok()? & libc::O_ACCMODE;
        let device = about.dev();
        let facts = FileFacts {
            readable: mode != libc::O_WRONLY,
            writable: mode != libc::O_RDONLY,
            device: (libc::major(device), libc::minor(device)),
            inode: about.ino(),
            ..FileFacts::new()
        };
        let known = (device, about.ino(), path.clone(), facts.writable);
        let new = || Arc::new(OpenFile::new(path, facts)) as Arc<dyn File>;
        Some(Arc::clone(self.files.entry(known).or_insert_with(new)))
    }
}

/// The ranges of a text like the maps file's in which the same is allowed. The kernel's own are
/// left out; and the stack, which it lets grow without a call.
fn pages(maps: &str) -> Vec<(Range<usize>, String)> {
    let mut pages: Vec<(Range<usize>, String)> = Vec::new();
    for line in maps.lines().filter(|line| !line.contains(" [v") && !line.ends_with("[stack]")) {
        let mut words = line.split(' ');
        let (start, end) = words.next().and_then(|range| range.split_once('-')).unwrap_or_default();
        let hex = |digits| usize::from_str_radix(digits, 16).unwrap_or(0);
        let (range, access) = (hex(start)..hex(end), words.next().unwrap_or_default());
        match pages.last_mut() {
            Some((last, same)) if last.end == range.start && same == access => last.end = range.end,
            _ => pages.push((range, access.to_owned())),
        }
    }
    pages
}

fn run(command: Command) -> Result<ExitCode> {
    let mut host = Host::start(command)?;
    let mut personality = Personality::of(&host)?;
    host.begin()?;
    loop {
        match host.wait()? {
            Event::Call(thread, call) => personality.serve(&host, thread, &call)?,
            Event::Begins(thread) => {
                personality = Personality::of(&host)?;
                host.go_on(thread)?;
            }
            Event::Ends(thread) => {
                let kernel = fs::read_to_string(format!("/proc/{}/maps", host.id()))?;
                let (there, here) = (pages(&kernel), pages(&personality.mm.maps()?));
                assert_eq!(there, here, "the host's pages, and those of the map");
                println!("{} ranges of pages are the same", here.len());
                host.go_on(thread)?;
            }
            Event::Ended(status) => {
                println!("{} threads, {:?}", host.threads(), personality.calls);
                return Ok(ExitCode::from(status));
            }
        }
    }
}

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let mut command = match arguments.next() {
        None => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(guest::ROLE);
            command
        }
        Some(role) if role == guest::ROLE => {
            guest::run()?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(program) => Command::new(program),
    };
    command.args(arguments);
    run(command)
}
