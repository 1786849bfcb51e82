//! What the tests share: random bytes, and children of the test itself that may die.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use pervma_pager::sys::Errno;
use pervma_pager::{FileSource, MemorySource, Options, Region};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

pub(crate) const PAGE: usize = 4096;

const CHILD: &str = "PERVMA_PAGER_TEST_CHILD";

/// Random bytes, the same for the same seed.
pub(crate) fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes
}

/// How a child ended, and what it wrote to its standard error.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exit: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stderr: String,
}

/// Runs `case` of the test `name` in a process of its own: in it, [`child_case`] is `Some(case)`.
pub(crate) fn run_child(name: &str, case: &str) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let Output { status, stderr, .. } = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, case)
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ended { exit: status.code(), signal: status.signal(), stderr }
}

/// The case to play, in a child.
pub(crate) fn child_case() -> Option<String> {
    let case = std::env::var(CHILD).ok()?;
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
    watch_for(30);
    Some(case)
}

/// Gives the tests of this program two minutes from now, until this is called again. A test that
/// could wait for ever calls it first; children are watched by [`child_case`].
pub(crate) fn watch() {
    watch_for(120);
}

/// When the program is to be ended; once that is set, a thread waits for it.
static DEADLINE: Mutex<Option<Instant>> = Mutex::new(None);
/// What else is said then.
static SAYS: OnceLock<fn()> = OnceLock::new();

/// Has the watchdog call a function before it ends the program.
pub(crate) fn when_it_hangs(says: fn()) {
    SAYS.get_or_init(|| says);
}

/// Ends this program in so many seconds, unless this is called again.
///
/// By a thread and not an alarm: threads of the pager, and those that wait for an exclusion, block
/// signals.
pub(crate) fn watch_for(seconds: u64) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let is_watched = DEADLINE.lock().unwrap().replace(deadline).is_some();
    if is_watched {
        return;
    }
    let wait = || loop {
        let deadline = DEADLINE.lock().unwrap().unwrap();
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => std::thread::sleep(left),
            _ => end_what_hangs(),
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(wait).unwrap();
}

/// Says where each thread is, and ends the program.
fn end_what_hangs() -> ! {
    // Not by a macro: what those print is held back until a test ends.
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "a test does not end; its threads, and where in the kernel they are:");
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let [name, place, call] = ["comm", "wchan", "syscall"]
            .map(|file| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default());
        let _ = writeln!(stderr, "    {} in {}: {}", name.trim(), place.trim(), call.trim());
    }
    if let Some(says) = SAYS.get() {
        says();
    }
    std::process::abort();
}

pub(crate) fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Says that a test returns without having tried all that its name says. CI lists these lines.
pub(crate) fn not_run(reason: impl std::fmt::Display) {
    println!("NOT RUN: {reason}");
}

/// So many huge pages of the system, as long as what is returned lives; if it has not so many, the
/// test has not run. Tests take turns, also those of other processes: what a region finds gone when
/// it needs it is an access that fails.
pub(crate) fn huge_pages(wanted: usize) -> Option<impl Drop> {
    struct Turn {
        _lock: File,
    }
    impl Drop for Turn {
        fn drop(&mut self) {}
    }
    let lock = File::open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").ok();
    if let Some(lock) = &lock {
        rustix::fs::flock(lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    }
    match lock {
        Some(lock) if free_huge_pages() >= wanted => Some(Turn { _lock: lock }),
        _ => {
            not_run(format_args!("vm.nr_hugepages has no {wanted} free pages"));
            None
        }
    }
}

/// Whether the handler threads of a region serve system calls; if not, the test has not run for
/// them.
pub(crate) fn serves_system_calls(region: &Region) -> bool {
    let serves = region.serves_system_calls();
    if !serves {
        not_run("system calls: this user's handler threads serve accesses of user code only");
    }
    serves
}

/// How many huge pages the system could give out.
fn free_huge_pages() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
    free.trim().parse().unwrap()
}

/// Who serves a region's faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Signal,
    Thread,
}

pub(crate) const MODES: [Mode; 2] = [Mode::Signal, Mode::Thread];

/// Memory and file, with these bytes and options that both modes have.
pub(crate) fn regions(bytes: &[u8], mode: Mode, set: fn(Options) -> Options) -> [Region; 2] {
    let memory = MemorySource::new(bytes);
    let file = FileSource::new(file_with(bytes)).unwrap();
    match mode {
        Mode::Signal => [set(Options::new()).map(memory), set(Options::new()).map(file)],
        Mode::Thread => {
            let set = set(Options::new()).handler_threads(1);
            [set.clone().map(memory), set.map(file)]
        }
    }
    .map(|region| region.unwrap())
}

pub(crate) fn byte(region: &Region, offset: usize) -> u8 {
    let mut byte = [0];
    region.read(offset, &mut byte);
    byte[0]
}

pub(crate) fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.read(0, &mut bytes);
    bytes
}

/// How many pages of a region are in memory, as the kernel says.
pub(crate) fn pages_in_memory(region: &Region) -> usize {
    let mut pages = vec![0_u8; region.len().div_ceil(PAGE)];
    let start = region.as_ptr().cast();
    // SAFETY: asks about the region's memory, and writes a byte for each page of it.
    let asked = unsafe { libc::mincore(start, region.len(), pages.as_mut_ptr()) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&page| page & 1 != 0).count()
}

/// Makes a system call fail in this thread from now on, as filters of containers do.
pub(crate) fn refuse(call: libc::c_long, errno: Errno) {
    let filter = SeccompFilter::new(
        [(call, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error().cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// What an application may ask of the kernel for some pages of a region: it changes no byte, and
/// gives them a mapping of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Advice(i32),
    Lock,
    Unlock,
    /// To a node of memory.
    Bind,
    /// As Android names heaps.
    Name,
}

impl Ask {
    /// Whether the kernel did it all: locking fills what is missing, which may fail.
    pub(crate) fn ask(self, region: &Region, pages: &Range<usize>) -> bool {
        self.ask_at(region.as_ptr(), pages)
    }

    /// Of the memory of a region, from its start on.
    pub(crate) fn ask_at(self, memory: *const u8, pages: &Range<usize>) -> bool {
        const MPOL_BIND: usize = 2;
        const PR_SET_VMA: i32 = 0x5356_4d41;
        const PR_SET_VMA_ANON_NAME: usize = 0;
        let start = memory.cast_mut().wrapping_add(pages.start * PAGE).cast::<libc::c_void>();
        let len = pages.len() * PAGE;
        let node_0 = 1_u64;
        let (call, mask) = (libc::SYS_mbind, &raw const node_0);
        let done = match self {
            // SAFETY: none of these calls changes what is in the memory.
            Self::Advice(advice) => unsafe { libc::madvise(start, len, advice) },
            // SAFETY: as above.
            Self::Lock => unsafe { libc::mlock(start, len) },
            // SAFETY: as above.
            Self::Unlock => unsafe { libc::munlock(start, len) },
            Self::Bind => {
                // SAFETY: as above; the kernel reads the mask of nodes.
                let done = unsafe { libc::syscall(call, start, len, MPOL_BIND, mask, 64_usize, 0) };
                done as i32
            }
            Self::Name => {
                let name = c"part".as_ptr();
                // SAFETY: as above; the kernel reads the name.
                unsafe { libc::prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, len, name) }
            }
        };
        done == 0
    }
}
