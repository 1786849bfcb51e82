//! A kernel that refuses system calls, as filters of containers do, played by seccomp: each call of
//! the crate in turn, for each reason, before regions are mapped and afterwards, in both modes. The
//! crate falls back, or there is an error, or the access fails as it was asked to; nothing aborts,
//! hangs, or shows wrong bytes.
//!
//! [`CALLS`] is all that the crate calls, and [`RUNTIME`] what the standard library, the C library
//! and the allocator call for it: whatever is in neither ends the child by SIGSYS, and fails the
//! test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, mpsc};

use common::{PAGE, child_case, random_bytes, refuse, run_child};
use libc::c_long;
use pervma_pager::sys::{Access, Errno, OpenError};
use pervma_pager::{
    Error, FileSource, FrozenRegion, MemorySource, OnFailure, Options, ReadFailed, Region,
    SignalSafe, Source,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// How a child may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// All was well.
    Worked,
    /// No region could be mapped, and an error says why.
    NotMapped,
    /// Some operation was an error.
    OperationFailed,
    /// An access ended as `OnFailure` says.
    AccessFailed,
}

impl End {
    const ALL: [Self; 4] = [Worked, NotMapped, OperationFailed, AccessFailed];

    fn code(self) -> i32 {
        match self {
            Self::Worked => 0,
            Self::NotMapped => 10,
            Self::OperationFailed => 11,
            Self::AccessFailed => 42,
        }
    }
}

use End::{AccessFailed, NotMapped, OperationFailed, Worked};

/// A system call of the crate, and what comes of refusing it: in signal mode and in thread mode.
struct Call {
    name: &'static str,
    number: c_long,
    /// Only with this value of this argument: the runtime makes the call as well.
    with: Option<(u8, u64)>,
    /// When it is refused before regions are mapped.
    before: [End; 2],
    /// When it is refused as soon as they are there, in all threads.
    after: [End; 2],
    /// The reasons.
    errnos: &'static [Errno],
}

const fn call(name: &'static str, number: c_long, before: [End; 2], after: [End; 2]) -> Call {
    Call { name, number, with: None, before, after, errnos: &[Errno::PERM, Errno::NOSYS] }
}

impl Call {
    const fn with(mut self, argument: u8, value: u64) -> Self {
        self.with = Some((argument, value));
        self
    }

    const fn by(mut self, errnos: &'static [Errno]) -> Self {
        self.errnos = errnos;
        self
    }
}

/// An ioctl, by its request.
const fn ioctl(name: &'static str, request: u64, before: [End; 2], after: [End; 2]) -> Call {
    call(name, libc::SYS_ioctl, before, after).with(1, request)
}

/// It is done without.
const FINE: [End; 2] = [Worked; 2];
const MAP: [End; 2] = [NotMapped; 2];
const THREAD_MAP: [End; 2] = [Worked, NotMapped];
const OPERATION: [End; 2] = [OperationFailed; 2];
const ACCESS: [End; 2] = [AccessFailed; 2];

const NO_DESCRIPTOR: &[Errno] = &[Errno::PERM, Errno::NOSYS, Errno::MFILE, Errno::NFILE];
const NO_MEMORY: &[Errno] = &[Errno::PERM, Errno::NOSYS, Errno::NOMEM];

const CALLS: &[Call] = &[
    // A descriptor, in one of two ways.
    call("userfaultfd", libc::SYS_userfaultfd, FINE, FINE).by(NO_DESCRIPTOR),
    call("openat", libc::SYS_openat, FINE, FINE).by(NO_DESCRIPTOR),
    ioctl("USERFAULTFD_IOC_NEW", 0xAA00, FINE, FINE),
    ioctl("UFFDIO_API", 0xC018_AA3F, MAP, FINE),
    ioctl("UFFDIO_REGISTER", 0xC020_AA00, MAP, OPERATION).by(NO_MEMORY),
    // Serving faults.
    ioctl("UFFDIO_COPY", 0xC028_AA03, MAP, ACCESS).by(NO_MEMORY),
    ioctl("UFFDIO_WRITEPROTECT", 0xC018_AA06, MAP, ACCESS).by(NO_MEMORY),
    ioctl("UFFDIO_WAKE", 0x8010_AA02, FINE, FINE),
    ioctl("UFFDIO_POISON", 0xC020_AA08, FINE, FINE).by(NO_MEMORY),
    ioctl("UFFDIO_MOVE", 0xC028_AA05, FINE, FINE).by(NO_MEMORY),
    call("ioctl", libc::SYS_ioctl, MAP, ACCESS),
    call("read", libc::SYS_read, THREAD_MAP, [Worked, AccessFailed]),
    call("eventfd2", libc::SYS_eventfd2, THREAD_MAP, FINE).by(NO_DESCRIPTOR),
    call("epoll_create1", libc::SYS_epoll_create1, THREAD_MAP, FINE).by(NO_DESCRIPTOR),
    call("epoll_ctl", libc::SYS_epoll_ctl, THREAD_MAP, FINE).by(NO_MEMORY),
    call("epoll_pwait2", libc::SYS_epoll_pwait2, FINE, FINE),
    call("epoll_pwait", libc::SYS_epoll_pwait, FINE, FINE),
    call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, FINE, FINE),
    call("sched_yield", libc::SYS_sched_yield, FINE, FINE),
    call("nanosleep", libc::SYS_nanosleep, FINE, FINE),
    call("clone3", libc::SYS_clone3, MAP, FINE).by(&[Errno::PERM, Errno::AGAIN]),
    // The C library has an older call.
    call("clone3", libc::SYS_clone3, FINE, FINE).by(&[Errno::NOSYS]),
    // Memory.
    call("mmap", libc::SYS_mmap, MAP, OPERATION).with(3, MAPPED).by(NO_MEMORY),
    call("munmap", libc::SYS_munmap, FINE, FINE).by(NO_MEMORY),
    call("mprotect", libc::SYS_mprotect, MAP, OPERATION).by(NO_MEMORY),
    call("munlock", libc::SYS_munlock, MAP, OPERATION).by(NO_MEMORY),
    call("mlock2", libc::SYS_mlock2, FINE, FINE).by(NO_MEMORY),
    call("mincore", libc::SYS_mincore, FINE, FINE),
    call("madvise DONTFORK", libc::SYS_madvise, MAP, OPERATION).with(2, 10),
    call("madvise DONTNEED", libc::SYS_madvise, ACCESS, ACCESS).with(2, 4),
    call("madvise DONTNEED_LOCKED", libc::SYS_madvise, FINE, FINE).with(2, 24),
    call("madvise UNMERGEABLE", libc::SYS_madvise, FINE, FINE).with(2, 13),
    call("madvise DOFORK", libc::SYS_madvise, MAP, OPERATION).with(2, 11),
    call("madvise NOHUGEPAGE", libc::SYS_madvise, FINE, FINE).with(2, 15),
    call("madvise HUGEPAGE", libc::SYS_madvise, FINE, FINE).with(2, 14),
    ioctl("UFFDIO_ZEROPAGE", 0xC020_AA04, FINE, FINE).by(NO_MEMORY),
    // Files.
    call("lseek", libc::SYS_lseek, FINE, FINE),
    call("pread64", libc::SYS_pread64, MAP, ACCESS),
    call("fstat", libc::SYS_fstat, MAP, ACCESS),
    call("fcntl F_GETFL", libc::SYS_fcntl, MAP, FINE).with(1, 3),
    call("fcntl F_GET_SEALS", libc::SYS_fcntl, FINE, FINE).with(1, 1034),
    call("pwritev2", libc::SYS_pwritev2, FINE, FINE),
    call("pwrite64", libc::SYS_pwrite64, FINE, FINE),
    call("fdatasync", libc::SYS_fdatasync, OPERATION, OPERATION),
    call("prlimit64", libc::SYS_prlimit64, FINE, FINE),
    call("close", libc::SYS_close, FINE, FINE),
    // Signals.
    call("rt_sigaction", libc::SYS_rt_sigaction, MAP, FINE),
    call("rt_sigprocmask", libc::SYS_rt_sigprocmask, MAP, OPERATION),
    call("getpid", libc::SYS_getpid, FINE, FINE),
];

/// The flags of memory that the crate maps. (The allocator maps some like that, and can do
/// without.)
const MAPPED: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;

/// What nothing in Rust runs without, or what only the runtime asks for.
const RUNTIME: &[c_long] = &[
    // Locks: the standard library and the lock of the address space wait by it.
    libc::SYS_futex,
    // The allocator.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads, their names, stacks and ends.
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_prctl,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Returning from a handler, going on after one.
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    // Time, where the kernel has not mapped a clock; random numbers for a map; what it prints.
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_write,
    // The watchdog of this test, if it comes to sleep only now.
    libc::SYS_clock_nanosleep,
    // Copies of descriptors, and their checks.
    libc::SYS_fcntl,
    // The filters of this test.
    libc::SYS_seccomp,
];

/// Bytes of the regions.
const LEN: usize = 64 * PAGE - 100;
/// And of the frozen one, which comes in huge pages.
const FROZEN_LEN: usize = 4 << 20;

/// Fails for one page.
struct Failing;

impl Source for Failing {
    fn size(&self) -> u64 {
        8 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let failing = 4 * PAGE as u64;
        if (offset..offset + buf.len() as u64).contains(&failing) {
            return Err(ReadFailed);
        }
        buf.fill(3);
        Ok(())
    }
}

// SAFETY: the buffer it is given.
unsafe impl SignalSafe for Failing {}

/// What a child plays with.
struct Stage {
    /// What the region of memory holds.
    original: Vec<u8>,
    /// What the region of a file holds.
    expected: Vec<u8>,
    /// What the frozen region holds.
    frozen: Vec<u8>,
    /// The file that a region maps, for a look at what was stored.
    file: File,
    mode: String,
    helper: Helper,
    failed: bool,
}

/// Says something, which may be refused as well.
fn say(text: &str) {
    // SAFETY: the kernel reads the text.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

fn exit_now(code: c_int) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(code) }
}

impl Stage {
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        self.failed |= result.is_err();
        if let Err(error) = &result {
            say(&format!("{error}\n"));
        }
        result.ok()
    }

    fn map<S: Source + SignalSafe + 'static>(
        &self,
        options: Options,
        source: S,
    ) -> Result<Region, Error> {
        let options = options.on_failure(OnFailure::exit(AccessFailed.code(), "no access\n"));
        match self.mode.as_str() {
            "signal" => options.map(source),
            _ => options.handler_threads(1).map(source),
        }
    }

    /// What there is to play with.
    fn regions(
        &self,
        bytes: MemorySource,
        [file, sparse, frozen]: [File; 3],
    ) -> Result<Regions, Error> {
        let granules = Options::new().granule(4 * PAGE);
        let bounded = granules.clone().writable().resident(16 * PAGE).capacity(LEN + 16 * PAGE);
        Ok(Regions {
            memory: self.map(granules.clone(), bytes)?,
            file: self.map(bounded, FileSource::new(file)?)?,
            sparse: self.map(granules, FileSource::new(sparse)?)?,
            single: self.map(Options::new(), MemorySource::new(vec![5; PAGE]))?,
            failing: self.map(Options::new(), Failing)?,
            frozen: {
                let granules = Options::new().granule(2 << 20);
                self.map(granules, FileSource::new(frozen)?)?.freeze()?
            },
        })
    }

    fn check(region: &Region, expected: &[u8]) {
        let mut page = [0; PAGE];
        for start in (0..region.len()).step_by(PAGE) {
            let page = &mut page[..PAGE.min(region.len() - start)];
            region.read(start, page);
            if page[..] != expected[start..start + page.len()] {
                say("wrong bytes in a region\n");
                exit_now(7);
            }
        }
    }

    fn write(&mut self, region: &Region, at: usize) {
        self.expected[at] = !self.expected[at];
        region.write(at, &self.expected[at..=at]);
    }

    /// Has each thread of the regions do something, so that all of them are there.
    fn warm_up(&mut self, regions: &Regions) {
        Self::check(&regions.memory, &self.original);
        for page in 0..64 {
            self.write(&regions.file, page * PAGE);
        }
        Self::check(&regions.file, &self.expected);
        regions.sparse.read(0, &mut [0]);
        regions.single.read(0, &mut [0]);
        regions.failing.read(0, &mut [0]);
        assert_eq!(regions.frozen[5], self.frozen[5]);
    }

    fn play(&mut self, regions: Regions) {
        let Regions { memory, mut file, sparse, single, failing, frozen } = regions;
        if frozen[..] != self.frozen[..] {
            say("wrong bytes in the frozen region\n");
            exit_now(9);
        }
        drop(frozen.thaw());
        Self::check(&sparse, &[0; LEN]);
        self.note(sparse.discard(0..LEN));
        Self::check(&sparse, &[0; LEN]);
        self.note(memory.protect(16 * PAGE..20 * PAGE, Access::None));
        self.note(memory.protect(16 * PAGE..20 * PAGE, Access::Read));
        Self::check(&memory, &self.original);
        self.note(memory.discard(0..32 * PAGE));
        if self.note(memory.unmap(8 * PAGE..24 * PAGE)).is_some() {
            self.note(memory.map(8 * PAGE..24 * PAGE));
        }
        if !self.failed {
            Self::check(&memory, &self.original);
        }
        for page in (0..64).rev() {
            self.write(&file, page * PAGE + 9);
        }
        Self::check(&file, &self.expected);
        self.write(&file, 3 * PAGE);
        if self.note(file.write_back(0..LEN)).is_some() {
            let mut stored = vec![0; LEN];
            if self.file.read_exact_at(&mut stored, 0).is_ok() && stored != self.expected {
                say("wrong bytes in the file\n");
                exit_now(8);
            }
        }
        self.write(&file, 7);
        self.note(file.written(0..LEN));
        self.note(file.relocate(0));
        Self::check(&file, &self.expected);
        // What is not written back is lost with the end.
        if self.note(file.sync()).is_some() {
            self.note(file.resize(40 * PAGE + 5));
            self.note(file.resize(LEN));
            Self::check(&file, &self.expected);
        }
        drop(file);
        drop(memory);
        // Given back as often as it is read: threads are in each other's way, and rest.
        let shared = Arc::new(single);
        let (discards, reader) = (Arc::clone(&shared), Arc::clone(&shared));
        let discards = self.helper.run(move || (0..100).all(|_| discards.discard(0..PAGE).is_ok()));
        (0..100).for_each(|_| reader.read(0, &mut [0]));
        self.failed |= !discards.recv().unwrap();
        failing.read(3 * PAGE, &mut [0]);
        self.note(failing.freeze());
    }
}

/// Regions to play with.
struct Regions {
    /// Of memory, in granules.
    memory: Region,
    /// Of a file, written, in granules, and bounded.
    file: Region,
    /// A file that is one hole.
    sparse: Region,
    /// A page.
    single: Region,
    /// Its source fails for one of its pages.
    failing: Region,
    /// Of a file, in granules of a huge page.
    frozen: FrozenRegion,
}

/// A thread that was started before anything was refused.
struct Helper(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Helper {
    fn start() -> Self {
        let (work, works) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || works.into_iter().for_each(|work| work()));
        let helper = Self(work);
        // What its beginning calls is not refused.
        assert!(helper.run(|| true).recv().unwrap());
        helper
    }

    /// Has it do something; what came of it.
    fn run(&self, work: impl FnOnce() -> bool + Send + 'static) -> mpsc::Receiver<bool> {
        let (done, outcome) = mpsc::channel();
        self.0.send(Box::new(move || done.send(work()).unwrap())).unwrap();
        outcome
    }
}

fn apply(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
    to_all: bool,
) {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, otherwise, action, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    if to_all {
        seccompiler::apply_filter_all_threads(&program).unwrap();
    } else {
        seccompiler::apply_filter(&program).unwrap();
    }
}

/// From now on this thread, and those that it starts, make no call but those of the tables.
fn allow_only_what_is_known() {
    let known = CALLS.iter().map(|call| call.number).chain(RUNTIME.iter().copied());
    let rules = known.map(|number| (number, vec![])).collect();
    apply(rules, SeccompAction::Trap, SeccompAction::Allow, false);
}

fn refuse_call(call: &Call, errno: Errno, to_all: bool) {
    let rules = call.with.map(|(argument, value)| {
        let length = SeccompCmpArgLen::Qword;
        let is = SeccompCondition::new(argument, length, SeccompCmpOp::Eq, value).unwrap();
        SeccompRule::new(vec![is]).unwrap()
    });
    let rules = [(call.number, rules.into_iter().collect())].into();
    let errno = errno.raw_os_error().cast_unsigned();
    apply(rules, SeccompAction::Allow, SeccompAction::Errno(errno), to_all);
}

/// Plays a case: the mode, when, the number of a call in the table and of an error.
fn play(case: &str) -> ! {
    let [mode, when, call, errno] = case.split(' ').collect::<Vec<_>>()[..] else {
        unreachable!("{case}")
    };
    let call = call.parse::<usize>().ok().map(|call| &CALLS[call]);
    let errno = || Errno::from_raw_os_error(errno.parse().unwrap());
    let expected = random_bytes(LEN, 1);
    let file = common::file_with(&expected);
    let source = MemorySource::new(&expected[..]);
    let theirs = file.try_clone().unwrap();
    let frozen = random_bytes(FROZEN_LEN / 512, 2).repeat(512);
    let files = [theirs, tempfile::tempfile().unwrap(), common::file_with(&frozen)];
    files[1].set_len(LEN as u64).unwrap();
    let helper = Helper::start();
    let mode = mode.to_owned();
    let original = expected.clone();
    let mut stage = Stage { original, expected, frozen, file, mode, helper, failed: false };
    allow_only_what_is_known();
    if let (Some(call), "before") = (call, when) {
        refuse_call(call, errno(), false);
    }
    let regions = match stage.regions(source, files) {
        Ok(regions) => regions,
        Err(error) => {
            say(&format!("{error}\n"));
            exit_now(NotMapped.code());
        }
    };
    if let (Some(call), "after") = (call, when) {
        stage.warm_up(&regions);
        refuse_call(call, errno(), true);
    }
    stage.play(regions);
    exit_now(if stage.failed { OperationFailed.code() } else { Worked.code() })
}

#[test]
fn every_call_may_be_refused() {
    if let Some(case) = child_case() {
        play(&case);
    }
    // Without it there is one way to a descriptor.
    let has_device = File::options().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let mut cases = Vec::new();
    for (mode_number, mode) in ["signal", "thread"].into_iter().enumerate() {
        cases.push((format!("{mode} never none 0"), format!("{mode}, none"), Worked));
        for (number, call) in CALLS.iter().enumerate() {
            for errno in call.errnos {
                let only_way = call.number == libc::SYS_userfaultfd && !has_device;
                let before = if only_way { MAP } else { call.before };
                for (when, ends) in [("before", before), ("after", call.after)] {
                    let case = format!("{mode} {when} {number} {}", errno.raw_os_error());
                    let what = format!("{mode}, {} is {errno:?} {when}", call.name);
                    cases.push((case, what, ends[mode_number]));
                }
            }
        }
    }
    let (cases, wrong) = (Mutex::new(cases), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                loop {
                    let Some((case, what, expected)) = cases.lock().unwrap().pop() else { return };
                    let ended = run_child("every_call_may_be_refused", &case);
                    if ended.exit != Some(expected.code()) {
                        let end = End::ALL.iter().find(|end| ended.exit == Some(end.code()));
                        let text =
                            format!("{what}: {expected:?} expected, {end:?}: {ended:?} ({case})");
                        wrong.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table is what the filter knows: a call that is in neither list ends the process.
#[test]
fn a_call_that_no_table_has_is_noticed() {
    if child_case().is_some() {
        allow_only_what_is_known();
        // SAFETY: no condition.
        unsafe { libc::syscall(libc::SYS_getppid) };
        exit_now(0);
    }
    let ended = run_child("a_call_that_no_table_has_is_noticed", "unknown");
    assert_eq!(ended.signal, Some(libc::SIGSYS), "{ended:?}");
}

/// What a signal that was sent is passed on by, when it had its default action before.
#[test]
fn a_signal_that_cannot_be_raised_ends_the_process() {
    if child_case().is_some() {
        // SAFETY: the default action.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let region = FrozenRegion::map(MemorySource::new(vec![1; PAGE])).unwrap();
        assert_eq!(region[0], 1);
        refuse(libc::SYS_tgkill, Errno::PERM);
        let this = rustix::thread::gettid().as_raw_nonzero().get();
        // SAFETY: no condition. To this thread, the only one that has the filter.
        unsafe { libc::syscall(libc::SYS_tkill, this, libc::SIGBUS) };
        std::thread::sleep(std::time::Duration::from_secs(20));
    }
    let ended = run_child("a_signal_that_cannot_be_raised_ends_the_process", "");
    assert_eq!(ended.exit, Some(128 + libc::SIGBUS), "{ended:?}");
}

#[test]
fn the_error_says_what_to_do() {
    common::watch();
    for errno in [Errno::PERM, Errno::NOSYS] {
        let thread = std::thread::spawn(move || {
            refuse(libc::SYS_userfaultfd, errno);
            refuse(libc::SYS_openat, errno);
            FrozenRegion::map(MemorySource::new(vec![1])).unwrap_err()
        });
        let error = thread.join().unwrap();
        assert!(matches!(error, Error::Userfaultfd(OpenError::Refused(found)) if found == errno));
        let text = error.to_string();
        for word in ["5.11", "seccomp", "vm.unprivileged_userfaultfd", "os error"] {
            assert!(text.contains(word), "{word} is missing in: {text}");
        }
        assert_eq!(text.lines().count(), 1);
    }
}
