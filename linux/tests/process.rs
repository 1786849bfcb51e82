//! Processes that are there are taken over as they are.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pervma_linux::{
    Config, Counts, Errno, Inference, Mm, NoBacking, ProcessError, Source, StdPlatform, VmFlags,
    abi::*,
};

/// A process that is stopped.
struct Stopped(Child);

impl Stopped {
    fn new(program: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null());
        let Ok(child) = command.stderr(Stdio::null()).spawn() else {
            println!("NOT RUN: there is no {program}");
            return None;
        };
        let stopped = Self(child);
        // It sleeps when it has started: it waits for its input.
        stopped.wait_for('S');
        stopped.send(libc::SIGSTOP);
        stopped.wait_for('T');
        Some(stopped)
    }

    /// A process that runs this test of this program until it stops itself.
    fn in_role(test: &str) -> Option<Self> {
        Self::of(Command::new(std::env::current_exe().unwrap()), test, 'T')
    }

    /// A process that runs this test of this program until its first thread is in this state.
    fn of(mut command: Command, test: &str, state: char) -> Option<Self> {
        command.args(["--exact", test, "--test-threads=1"]).env(ROLE, "1");
        let mut process = Self(command.stdout(Stdio::null()).spawn().unwrap());
        let begin = Instant::now();
        while !process.file("status").contains(&format!("State:\t{state}")) {
            if process.0.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(process)
    }

    fn send(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.0.id()).unwrap();
        // SAFETY: sends a signal to a child of this process that nobody has waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).unwrap()
    }

    fn wait_for(&self, state: char) {
        let begin = Instant::now();
        let wanted = format!("State:\t{state}");
        while !self.file("status").contains(&wanted) {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", self.file("status"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// In pages.
    fn counts(&self) -> Counts {
        let status = self.file("status");
        let count = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_ascii_whitespace().next().unwrap().parse::<usize>().unwrap() / 4
        };
        Counts {
            total: count("VmSize:"),
            data: count("VmData:"),
            stack: count("VmStk:"),
            exec: count("VmExe:") + count("VmLib:"),
            locked: count("VmLck:"),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_process_is_taken_over_as_it_is() {
    for (program, arguments) in
        [("cat", &[][..]), ("sh", &["-c", "read line"]), ("python3", &["-c", "input()"])]
    {
        let Some(process) = Stopped::new(program, arguments) else { continue };
        let pid = process.0.id();
        let (mm, inferred) = Mm::of_process(pid, NoBacking, Config::default()).unwrap();
        let maps = process.file("maps");
        let maps: String =
            maps.lines().filter(|l| !l.ends_with("[vsyscall]")).map(|l| format!("{l}\n")).collect();
        assert_eq!(mm.maps().unwrap(), maps, "{program}");
        assert_eq!(mm.counts(), process.counts(), "{program}");
        let is_inferred = |what| inferred.iter().any(|inferred| inferred.what == what);
        assert!(is_inferred(Inference::MmapBase) && is_inferred(Inference::Brk));
        assert!(is_inferred(Inference::File) && is_inferred(Inference::AnonVma));

        // What the kernel says of its mappings.
        let mut special = Vec::new();
        mm.for_each(|range, vma| {
            if matches!(vma.source, Source::Special(_)) {
                special.push((range, vma.flags));
            }
        })
        .unwrap();
        let (vdso, _) = special.iter().find(|(_, flags)| flags.has(VmFlags::EXEC)).unwrap();
        assert_eq!(mm.munmap(vdso.start, PAGE), Err(Errno::EINVAL));
        // Memory that is mapped next lies below what was mapped first.
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        let addr = mm.mmap(0, PAGE, PROT_READ, flags, None, 0).unwrap();
        assert!(addr < mm.config().layout.mmap_base && addr + (1 << 40) > vdso.start);
        let heap = mm.config().layout.brk;
        assert_eq!(mm.brk(heap + PAGE), heap + PAGE);
    }
}

/// Set in a process that this test program starts.
const ROLE: &str = "PERVMA_IS_TAKEN_OVER";
/// Where it maps something, when it has been taken over.
const LATER: usize = 0x1000_0000_0000;

/// The process: it says that what it maps later is to be locked, stops, maps something, stops.
#[test]
fn locks_what_it_maps() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let at = std::ptr::with_exposed_provenance_mut(LATER);
    // SAFETY: takes a number.
    if unsafe { libc::mlockall(libc::MCL_FUTURE | libc::MCL_ONFAULT) } != 0 {
        return;
    }
    // SAFETY: stops this process, until it is told to go on.
    unsafe { libc::raise(libc::SIGSTOP) };
    // SAFETY: nothing is mapped there, and nothing refers to it.
    unsafe { libc::mmap(at, 4 * PAGE, prot, flags, -1, 0) };
    // SAFETY: as above.
    unsafe { libc::raise(libc::SIGSTOP) };
}

#[test]
fn what_a_process_has_said_of_mappings_to_come_is_given() {
    let Some(process) = Stopped::in_role("locks_what_it_maps") else {
        println!("NOT RUN: this user may lock nothing");
        return;
    };
    let begin = Instant::now();
    let pid = process.0.id();
    let take_over = |future| {
        let config = Config { future, ..Config::default() };
        let (mm, inferred) = Mm::of_process(pid, NoBacking, config).unwrap();
        assert!(inferred.iter().any(|inferred| inferred.what == Inference::Future));
        mm
    };
    let [said, unsaid] = [VmFlags::LOCKED_MASK, VmFlags::default()].map(take_over);
    assert_eq!(said.maps(), unsaid.maps(), "nothing tells the two apart");
    process.send(libc::SIGCONT);
    while !process.file("maps").contains(&format!("{LATER:x}-")) {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    let map = |mm: &Mm<NoBacking, StdPlatform>| {
        mm.mmap(LATER, 4 * PAGE, PROT_READ | PROT_WRITE, flags, None, 0).unwrap();
        let (_, vma) = mm.lookup(LATER).unwrap().unwrap();
        (vma.flags.to_string(), mm.counts())
    };
    let smaps = process.file("smaps");
    let section = smaps.split_once(&format!("{LATER:x}-")).unwrap().1;
    let shown = section.lines().find_map(|line| line.strip_prefix("VmFlags: ")).unwrap().trim();
    assert_eq!(map(&said), (shown.to_owned(), process.counts()));
    assert!(shown.contains("lo") && map(&unsaid).0 != shown);
}

/// The process: it maps zeros that it may only read, shared and private, and stops.
#[test]
fn maps_zeros() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let zero = fs::File::open("/dev/zero").unwrap();
    for (page, shared) in [(0, libc::MAP_SHARED), (4, libc::MAP_PRIVATE)] {
        let at = std::ptr::with_exposed_provenance_mut(LATER + page * PAGE);
        let flags = shared | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: nothing is mapped there, and nothing refers to it.
        unsafe { libc::mmap(at, PAGE, libc::PROT_READ, flags, zero.as_raw_fd(), 0) };
    }
    // SAFETY: stops this process.
    unsafe { libc::raise(libc::SIGSTOP) };
}

#[test]
fn zeros_of_a_process_are_anonymous_memory() {
    let process = Stopped::in_role("maps_zeros").unwrap();
    let (mm, _) = Mm::of_process(process.0.id(), NoBacking, Config::default()).unwrap();
    for (page, shared) in [(0, VmFlags::MAYSHARE), (4, VmFlags::default())] {
        let addr = LATER + page * PAGE;
        let (_, vma) = mm.lookup(addr).unwrap().unwrap();
        assert!(vma.flags.has(shared) && matches!(vma.source, Source::Zero(_)), "{vma:?}");
        // As the kernel says, of anonymous memory only.
        assert_eq!(mm.madvise(addr, PAGE, MADV_FREE), Ok(()));
    }
}

/// The process: its first thread ends, and this one sleeps.
#[test]
fn ends_its_first_thread() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: ends this thread, on whose stack nothing is that this test uses.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let (end, process) = (end as extern "C" fn(libc::c_int), std::process::id());
    // SAFETY: the handler makes one system call.
    unsafe { libc::signal(libc::SIGUSR1, end as libc::sighandler_t) };
    // SAFETY: sends a signal to the first thread, whose number is the process's.
    unsafe { libc::syscall(libc::SYS_tgkill, process, process, libc::SIGUSR1) };
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_process_whose_first_thread_has_ended_is_taken_over() {
    let this = Command::new(std::env::current_exe().unwrap());
    let process = Stopped::of(this, "ends_its_first_thread", 'Z').unwrap();
    let (mm, _) = Mm::of_process(process.0.id(), NoBacking, Config::default()).unwrap();
    assert!(mm.maps().unwrap().contains("process-"), "this program");
}

/// The process: it stops.
#[test]
fn stops() {
    if std::env::var_os(ROLE).is_some() {
        // SAFETY: stops this process.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}

#[test]
fn capabilities_in_a_namespace_are_none_of_the_machine() {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user"]).arg(std::env::current_exe().unwrap());
    let Some(process) = Stopped::of(unshare, "stops", 'T') else {
        println!("NOT RUN: this user may have no namespace of users");
        return;
    };
    assert!(process.file("status").contains("CapEff:\t000001ffffffffff"), "it has all");
    let (mm, _) = Mm::of_process(process.0.id(), NoBacking, Config::default()).unwrap();
    let config = mm.config();
    assert!(!config.may_lock && !config.may_map_low && !config.may_set_addresses);
}

#[test]
fn what_is_no_process_is_an_error() {
    let ended = Stopped(Command::new("true").spawn().unwrap());
    ended.wait_for('Z');
    let error = Mm::of_process(ended.0.id(), NoBacking, Config::default()).unwrap_err();
    assert!(error.to_string().contains("it has no memory"), "{error}");
    // Above the largest number of a process.
    let error = Mm::of_process(1 << 30, NoBacking, Config::default()).unwrap_err();
    assert!(matches!(&error, ProcessError::Proc(error) if error.raw_os_error() == Some(2)));
    assert!(error.to_string().starts_with("reading /proc: "), "{error}");
}
