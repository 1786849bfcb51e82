//! Programs that run are mirrored without a difference, and a wrong rule of the model is found.
//!
//! The programs are this test binary, once more: `a_program` does what a variable says.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::env;
use std::ffi::{CString, OsString};
use std::fs;
use std::ptr;
use std::sync::mpsc;
use std::thread;

use libc::{c_int, c_void};
use pervma_differ::mirror::{Command, Ended, Fact, MirrorError, Mirrored, Report, Rule, mirror};
use pervma_differ::{Machine, Op, Outcome};
use pervma_linux::{Access, Source, abi};

/// What the program does.
const PROGRAM: &str = "PERVMA_MIRRORED";
const PAGE: usize = abi::PAGE;
const ANONYMOUS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const BOTH: c_int = libc::PROT_READ | libc::PROT_WRITE;

// --- Programs ------------------------------------------------------------------------------------

/// A mapping of memory or of a file, or where none could be made, `None`.
fn map(addr: usize, len: usize, prot: c_int, flags: c_int, file: c_int) -> Option<usize> {
    let at = ptr::with_exposed_provenance_mut(addr);
    // SAFETY: where it is fixed, it is over what this program has mapped, and uses no more.
    let mapped = unsafe { libc::mmap(at, len, prot, flags, file, 0) };
    (mapped != libc::MAP_FAILED).then(|| mapped.expose_provenance())
}

fn memory(pages: usize) -> usize {
    map(0, pages * PAGE, BOTH, ANONYMOUS, -1).unwrap()
}

fn pointer(addr: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(addr)
}

fn write(addr: usize) {
    // SAFETY: it is mapped, and nothing else uses it.
    unsafe { pointer(addr).cast::<u8>().write_volatile(1) };
}

fn unmap(addr: usize, len: usize) -> c_int {
    // SAFETY: it was mapped by this program for this, or cannot be unmapped.
    unsafe { libc::munmap(pointer(addr), len) }
}

fn protect(addr: usize, len: usize, prot: c_int) -> c_int {
    // SAFETY: it was mapped by this program for this.
    unsafe { libc::mprotect(pointer(addr), len, prot) }
}

fn advise(addr: usize, len: usize, advice: c_int) -> c_int {
    // SAFETY: it was mapped by this program for this.
    unsafe { libc::madvise(pointer(addr), len, advice) }
}

/// Calls in several threads, whose neighbours are written meanwhile.
fn threads() {
    thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                let mut all = Vec::new();
                for round in 0..60 {
                    let addr = memory(4);
                    write(addr + round % 4 * PAGE);
                    protect(addr + PAGE, PAGE, libc::PROT_READ);
                    protect(addr + PAGE, PAGE, BOTH);
                    all.push(addr);
                    if round % 3 == thread % 3 {
                        unmap(all.swap_remove(round / 3), 4 * PAGE);
                    }
                }
            });
        }
    });
}

/// Another thread writes beside a mapping for the first time, just when that is made.
fn races() {
    const BASE: usize = 0x1000_0000_0000;
    let (begin, begun) = mpsc::channel::<(usize, u32)>();
    let (end, ended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for (addr, spins) in begun {
                (0..spins).for_each(|spin| _ = std::hint::black_box(spin));
                write(addr);
                end.send(()).unwrap();
            }
        });
        let fixed = ANONYMOUS | libc::MAP_FIXED;
        for round in 0..300_u32 {
            map(BASE, PAGE, BOTH, fixed, -1);
            map(BASE + 2 * PAGE, PAGE, BOTH, fixed, -1);
            write(BASE);
            begin.send((BASE + 2 * PAGE, round * 7919 % 3000)).unwrap();
            // It fills the hole between two that may have different owners by then.
            map(BASE + PAGE, PAGE, BOTH, fixed, -1);
            ended.recv().unwrap();
            unmap(BASE, 3 * PAGE);
        }
        drop(begin);
    });
}

fn wait_for(pid: c_int) {
    let mut status = 0;
    // SAFETY: the kernel writes a status to where there is one.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
}

/// Forks, with mappings that are and are not in the child, and a child of the child.
fn forks() {
    let addr = memory(8);
    write(addr);
    write(addr + 7 * PAGE);
    advise(addr + 2 * PAGE, PAGE, libc::MADV_DONTFORK);
    advise(addr + 4 * PAGE, PAGE, libc::MADV_WIPEONFORK);
    let shared = map(0, 2 * PAGE, BOTH, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1).unwrap();
    for depth in 0..3 {
        // SAFETY: the child makes only system calls.
        let pid = unsafe { libc::fork() };
        if pid != 0 {
            wait_for(pid);
            memory(depth + 1);
            if depth > 0 {
                // SAFETY: the end of a child.
                unsafe { libc::_exit(0) };
            }
            break;
        }
        write(shared);
        write(addr);
        map(addr + 2 * PAGE, PAGE, BOTH, ANONYMOUS | libc::MAP_FIXED, -1);
        unmap(addr + 5 * PAGE, PAGE);
        map(0, PAGE, BOTH, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    }
}

/// A process that starts others without end: forks, or programs.
fn starts(programs: bool) -> ! {
    loop {
        if programs {
            let _ = std::process::Command::new("true").status();
            continue;
        }
        // SAFETY: the child makes only system calls.
        match unsafe { libc::fork() } {
            // SAFETY: the end of a child.
            0 => unsafe { libc::_exit(0) },
            pid => wait_for(pid),
        }
    }
}

/// Processes that are killed, or end, while a thread of them starts another process.
fn ends_at_forks() {
    for round in 0..60 {
        let [is_killed, programs] = [round % 2 == 0, round % 8 >= 6];
        // SAFETY: the child uses what the one thread left has.
        let pid = unsafe { libc::fork() };
        let while_it_forks = std::time::Duration::from_micros(3000 + round * 7919 % 5000);
        if pid != 0 {
            if is_killed {
                thread::sleep(while_it_forks);
                // SAFETY: takes numbers. The process was not waited for, so the number is its.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            wait_for(pid);
        } else if is_killed {
            starts(programs);
        } else {
            thread::spawn(move || starts(programs));
            thread::sleep(while_it_forks);
            // SAFETY: the end of a child.
            unsafe { libc::_exit(0) };
        }
    }
}

/// A process, of one thread, that nobody may look into without privilege.
fn hides() {
    // SAFETY: the child makes only system calls.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        return wait_for(pid);
    }
    // SAFETY: changes who may trace this process.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
    memory(1);
    // SAFETY: the end of a child.
    unsafe { libc::_exit(0) };
}

/// Other programs, in processes that share the memory until they are replaced.
fn spawns() {
    for program in ["true", "false", "no-such-program"] {
        let _ = std::process::Command::new(program).status();
    }
}

/// What merges depends on which mapping was written first.
fn merges() {
    let addr = memory(16);
    unmap(addr + 4 * PAGE, PAGE);
    unmap(addr + 9 * PAGE, PAGE);
    write(addr);
    write(addr + 5 * PAGE);
    // Only the one below has pages; then both, of different owners.
    map(addr + 9 * PAGE, PAGE, BOTH, ANONYMOUS | libc::MAP_FIXED, -1);
    map(addr + 4 * PAGE, PAGE, BOTH, ANONYMOUS | libc::MAP_FIXED, -1);
    // SAFETY: the pages are not used any more.
    unsafe { libc::mremap(pointer(addr + 12 * PAGE), PAGE, 3 * PAGE, libc::MREMAP_MAYMOVE) };
    advise(addr + PAGE, PAGE, libc::MADV_DONTDUMP);
    advise(addr + PAGE, PAGE, libc::MADV_DODUMP);
}

/// A descriptor that nobody closes.
fn open(path: &str, flags: c_int) -> c_int {
    let path = CString::new(path).unwrap();
    // SAFETY: a string that ends with a zero.
    unsafe { libc::open(path.as_ptr(), flags) }
}

/// Files of all kinds, whose names, sizes and seals change.
fn files() {
    let folder = tempfile::TempDir::new().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("two\nlines"));
    fs::write(&old, vec![1; 20 * PAGE]).unwrap();
    let file = open(old.to_str().unwrap(), libc::O_RDWR);
    let addr = map(0, 10 * PAGE, BOTH, libc::MAP_PRIVATE, file).unwrap();
    write(addr);
    fs::rename(&old, &new).unwrap();
    // The same open file merges, another one of the same inode does not.
    // SAFETY: takes numbers.
    let copied = unsafe { libc::dup(file) };
    let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED;
    map(addr, PAGE, BOTH, fixed, copied);
    // Not with what has another offset either.
    map(addr + 5 * PAGE, PAGE, BOTH, fixed, copied);
    map(addr, PAGE, BOTH, fixed, open(new.to_str().unwrap(), libc::O_RDONLY));
    fs::remove_file(&new).unwrap();
    memory(1);
    let zero = open("/dev/zero", libc::O_RDWR);
    write(map(0, 2 * PAGE, BOTH, libc::MAP_PRIVATE, zero).unwrap());
    write(map(0, 2 * PAGE, BOTH, libc::MAP_SHARED, zero).unwrap());
    let paths = [
        "/proc/self/status",
        "/proc/self/ns/user",
        "/dev/null",
        "/",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        // Of one version or the other.
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/cpu/cgroup.procs",
    ];
    for path in paths {
        map(0, PAGE, libc::PROT_READ, libc::MAP_PRIVATE, open(path, libc::O_RDONLY));
    }
    map(0, PAGE, libc::PROT_READ, libc::MAP_PRIVATE, open("/", libc::O_PATH));
    map(0, PAGE, libc::PROT_READ, libc::MAP_PRIVATE, 999);
    // SAFETY: a string that ends with a zero.
    let sealed = unsafe { libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING) };
    // SAFETY: takes numbers.
    unsafe { libc::ftruncate(sealed, 4 * PAGE as i64) };
    let addr = map(0, 8 * PAGE, BOTH, libc::MAP_SHARED, sealed).unwrap();
    // Up to the end of the file, and not behind it.
    advise(addr, 8 * PAGE, libc::MADV_POPULATE_READ);
    unmap(addr, 8 * PAGE);
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(sealed, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    map(0, PAGE, BOTH, libc::MAP_SHARED, sealed);
    map(0, PAGE, libc::PROT_READ, libc::MAP_SHARED, sealed);
    // What nobody else can read is locked.
    // SAFETY: takes numbers.
    if let secret @ 0.. = unsafe { libc::syscall(libc::SYS_memfd_secret, 0) } {
        let secret = c_int::try_from(secret).unwrap();
        // SAFETY: takes numbers.
        unsafe { libc::ftruncate(secret, 4 * PAGE as i64) };
        map(0, PAGE, BOTH, libc::MAP_PRIVATE, secret);
        if let Some(addr) = map(0, 4 * PAGE, BOTH, libc::MAP_SHARED, secret) {
            protect(addr + PAGE, PAGE, libc::PROT_READ);
            memory(1);
        }
    }
}

/// Stacks that grow, in the main thread and elsewhere.
fn stacks() {
    fn deep(left: usize) -> usize {
        let frame = std::hint::black_box([left as u8; 2000]);
        if left == 0 { 0 } else { deep(left - 1) + usize::from(frame[left % 2000] == 0) }
    }
    deep(300);
    let hole = memory(64);
    unmap(hole, 64 * PAGE);
    let at = hole + 60 * PAGE;
    let flags = ANONYMOUS | libc::MAP_FIXED | libc::MAP_GROWSDOWN;
    map(at, 2 * PAGE, BOTH, flags, -1).unwrap();
    write(at - PAGE / 2);
    memory(1);
    // The next call is about what has grown.
    write(at - 5 * PAGE);
    protect(at - 5 * PAGE, PAGE, libc::PROT_NONE);
    protect(at, PAGE, libc::PROT_READ | libc::PROT_GROWSDOWN);
}

/// A stack that grows as far as a limit allows that was set just before: up to a fork, and an exit.
fn limits() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to a limit that is there.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) };
    // The stack of the main thread, where it has grown to so far.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let start = usize::from_str_radix(stack.split('-').next().unwrap(), 16).unwrap();
    // SAFETY: the child makes only system calls.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        return wait_for(pid);
    }
    let large = libc::rlimit { rlim_cur: limit.rlim_max.min(64 << 20), ..limit };
    for depth in [16 << 20, 20 << 20] {
        // SAFETY: the kernel reads a limit that is there.
        unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const large) };
        write(start - depth);
        // SAFETY: both make only system calls.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            break;
        }
        wait_for(pid);
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) };
    }
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const large) };
    write(start - (24 << 20));
    // SAFETY: the end of a child.
    unsafe { libc::_exit(0) };
}

/// A limit of the whole process, set with the number of a thread of it.
fn limits_by_thread() {
    let small = libc::rlimit { rlim_cur: 1 << 30, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: takes nothing.
    let tid = unsafe { libc::gettid() };
    // SAFETY: the kernel reads a limit that is there.
    let set = unsafe { libc::prlimit(tid, libc::RLIMIT_AS, &raw const small, ptr::null_mut()) };
    assert!(set == 0 && tid != std::process::id().cast_signed());
    assert_eq!(map(0, 2 << 30, BOTH, ANONYMOUS, -1), None);
}

/// Calls on the kernel's own mappings.
fn special() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines().filter(|line| line.contains("[vvar") || line.ends_with("[vdso]")) {
        let range = line.split(' ').next().unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
        unmap(start, PAGE);
        unmap(end - PAGE, 2 * PAGE);
        protect(start, PAGE, BOTH);
        advise(start, end - start, libc::MADV_DONTNEED);
        // SAFETY: takes numbers.
        unsafe { libc::mlock(pointer(start), end - start) };
        if !line.ends_with("[vdso]") {
            unmap(start, end - start);
        }
    }
    // Nothing can tell the time any more.
    // SAFETY: ends the program.
    unsafe { libc::_exit(0) };
}

/// `process_madvise` of the own memory, with vectors and flags that are and are not valid.
fn advises_itself() {
    // SAFETY: takes numbers.
    let own = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    let call = |vector: usize, count: usize, advice: c_int, flags: c_int| {
        // SAFETY: the kernel reads ranges, whose contents are not used.
        unsafe { libc::syscall(440, own, pointer(vector), count, advice, flags) }
    };
    let addr = memory(4);
    let vector = memory(8);
    let set = |number: usize, addr: usize, len: usize| {
        let range = libc::iovec { iov_base: pointer(addr), iov_len: len };
        // SAFETY: it is in what was mapped for it.
        unsafe { pointer(vector + 16 * number).cast::<libc::iovec>().write(range) };
    };
    let cold = libc::MADV_COLD;
    (0..2000).for_each(|number| set(number, addr, 0));
    set(0, addr, PAGE);
    for (count, flags) in [(0, 0), (1, 0), (1, 1), (1024, 0), (1025, 0), (1 << 32, 0)] {
        call(vector, count, cold, flags);
    }
    for at in [0, 8, vector + 8 * PAGE - 8, usize::MAX - 7] {
        call(at, 2, cold, 0);
    }
    let end = 1 << 47;
    let ranges = [
        (addr, usize::MAX),
        (addr, usize::MAX / 2),
        (addr, 3 << 30),
        (addr + 1, 0),
        (addr + 1, PAGE),
        (end - 3 * PAGE, PAGE),
        (end - PAGE, PAGE),
        (usize::MAX, 0),
        (usize::MAX, 1),
        (8 * end, PAGE),
    ];
    for (from, len) in ranges {
        for (number, count) in [(0, 1), (0, 2), (1, 2), (1, 3)] {
            (0..3).for_each(|number| set(number, addr + number * PAGE, PAGE));
            set(number, from, len);
            call(vector, count, cold, 0);
        }
    }
    // What is empty is looked at only as the first of some.
    for advice in [cold, -1] {
        set(0, addr + 1, 0);
        call(vector, 1, advice, 0);
        set(0, addr, PAGE);
        set(1, addr + 1, 0);
        call(vector, 2, advice, 0);
        call(vector, 3, advice, 0);
    }
    protect(vector, PAGE, libc::PROT_NONE);
    call(vector, 1, cold, 0);
}

/// Memory that is locked, sealed, guarded, and counted by limits.
fn states() {
    let addr = memory(16);
    // SAFETY: these take numbers, and the memory is this function's.
    unsafe {
        libc::mlock(pointer(addr), 2 * PAGE);
    }
    // SAFETY: as above.
    unsafe {
        libc::mlock2(pointer(addr + 4 * PAGE), PAGE, libc::MLOCK_ONFAULT);
    }
    // SAFETY: as above.
    unsafe {
        libc::munlock(pointer(addr), PAGE);
    }
    // SAFETY: as above.
    unsafe {
        libc::mlockall(libc::MCL_FUTURE);
    }
    memory(2);
    // SAFETY: as above.
    unsafe {
        libc::munlockall();
    }
    advise(addr + 8 * PAGE, PAGE, abi::MADV_GUARD_INSTALL);
    advise(addr + 6 * PAGE, 4 * PAGE, abi::MADV_POPULATE_WRITE);
    advise(addr + 8 * PAGE, PAGE, abi::MADV_GUARD_REMOVE);
    let parts =
        [addr, addr + 2 * PAGE].map(|at| libc::iovec { iov_base: pointer(at), iov_len: PAGE });
    // SAFETY: takes numbers.
    let own = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    // SAFETY: the kernel reads two ranges, whose contents are not used.
    unsafe { libc::syscall(440, own, parts.as_ptr(), 2, libc::MADV_COLD, 0) };
    let mut present = [0_u8; 16];
    // SAFETY: the kernel writes a byte for each page.
    unsafe { libc::mincore(pointer(addr), 16 * PAGE, present.as_mut_ptr()) };
    // SAFETY: takes numbers.
    unsafe { libc::msync(pointer(addr), PAGE, libc::MS_SYNC) };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to a limit that is there.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    let small = libc::rlimit { rlim_cur: 1 << 30, ..limit };
    // SAFETY: the kernel reads a limit that is there.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const small) };
    assert_eq!(map(0, 2 << 30, BOTH, ANONYMOUS, -1), None);
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    map(0, PAGE, BOTH, ANONYMOUS | libc::MAP_32BIT, -1);
    map(0, 4 << 20, BOTH, ANONYMOUS | libc::MAP_HUGETLB, -1);
    // SAFETY: the memory is not used any more.
    unsafe { libc::syscall(462, addr + 12 * PAGE, PAGE, 0) };
    unmap(addr + 12 * PAGE, PAGE);
    // What was moved is counted as locked twice, and is once the user is another one, too.
    // SAFETY: the memory is this function's.
    unsafe { libc::mlock(pointer(addr), 2 * PAGE) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    // SAFETY: as above.
    unsafe { libc::mremap(pointer(addr), PAGE, PAGE, flags, ptr::null_mut::<c_void>()) };
    // SAFETY: takes a number.
    unsafe { libc::setuid(65534) };
    let most = libc::rlimit { rlim_cur: 4 * PAGE as u64, rlim_max: 4 * PAGE as u64 };
    // SAFETY: the kernel reads a limit that is there.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const most) };
    for page in 4..12 {
        // SAFETY: as above.
        unsafe { libc::mlock(pointer(addr + page * PAGE), PAGE) };
    }
}

/// What the kernel maps in other calls: a segment of System V, and a ring.
fn others() {
    // SAFETY: takes numbers.
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 3 * PAGE, 0o600 | libc::IPC_CREAT) };
    if segment >= 0 {
        // SAFETY: the kernel chooses a free address.
        let at = unsafe { libc::shmat(segment, ptr::null(), 0) };
        // SAFETY: it is removed with its last mapping.
        unsafe { libc::shmctl(segment, libc::IPC_RMID, ptr::null_mut()) };
        protect(at.expose_provenance() + PAGE, PAGE, libc::PROT_READ);
        // SAFETY: nothing uses it.
        unsafe { libc::shmdt(at) };
    }
    let mut ring = 0_u64;
    // SAFETY: the kernel writes a number to where there is one.
    if unsafe { libc::syscall(libc::SYS_io_setup, 4, &raw mut ring) } == 0 {
        memory(1);
        // SAFETY: takes a number.
        unsafe { libc::syscall(libc::SYS_io_destroy, ring) };
    }
    memory(2);
}

#[test]
fn a_program() {
    let Some(program) = env::var_os(PROGRAM) else { return };
    match program.to_str().unwrap() {
        "threads" => threads(),
        "races" => races(),
        "forks" => forks(),
        "ends at forks" => ends_at_forks(),
        "forks without end" => starts(false),
        "hides" => hides(),
        "spawns" => spawns(),
        "merges" => merges(),
        "files" => files(),
        "stacks" => stacks(),
        "limits" => limits(),
        "limits by thread" => limits_by_thread(),
        "special" => special(),
        "advises itself" => advises_itself(),
        "states" => states(),
        "others" => others(),
        "replaced by a thread" => thread::scope(|scope| {
            scope.spawn(|| {
                memory(1);
                let program = c"/bin/true";
                let arguments = [program.as_ptr(), ptr::null()];
                // SAFETY: strings, and a list that ends with a null pointer.
                unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
            });
            loop {
                unmap(memory(2), 2 * PAGE);
            }
        }),
        "aborts" => std::process::abort(),
        "sleeps" => thread::sleep(std::time::Duration::from_secs(1000)),
        // PR_SET_MDWE, which no call can undo.
        // SAFETY: changes what this process may map.
        "unknown" => assert_eq!(unsafe { libc::prctl(65, 1_u64, 0_u64, 0_u64, 0_u64) }, 0),
        other => panic!("{other}"),
    }
}

/// A program of these.
fn command(program: &str) -> Command {
    let exe = env::current_exe().unwrap();
    let variable = OsString::from(format!("{PROGRAM}={program}"));
    let [exact, quiet] = ["--exact", "--quiet"].map(OsString::from);
    let arguments = [variable, exe.into(), exact, "a_program".into(), quiet];
    Command { output_to_errors: true, ..Command::new("env", arguments) }
}

// --- They are mirrored ---------------------------------------------------------------------------

/// The machine, if programs can be traced on it.
fn machine() -> Option<Machine> {
    let machine = common::machine()?;
    match mirror(&machine, &Command::new("true", [""; 0])) {
        Err(MirrorError::Trace(error)) => {
            println!("NOT RUN: no program can be traced here: {error}");
            None
        }
        _ => Some(machine),
    }
}

fn mirrored(machine: &Machine, program: &str) -> Report {
    let report = mirror(machine, &command(program)).unwrap();
    let shown: Vec<String> = report.shown.iter().map(ToString::to_string).collect();
    assert_eq!((report.divergences, report.resyncs), (0, 0), "{program}: {}", shown.join("\n"));
    report
}

#[test]
fn programs_do_the_same() {
    let Some(machine) = machine() else { return };
    let all = [
        "merges",
        "files",
        "stacks",
        "limits",
        "limits by thread",
        "special",
        "advises itself",
        "states",
        "others",
        "spawns",
        "forks",
        "threads",
        "races",
        "replaced by a thread",
    ];
    for program in all {
        let report = mirrored(&machine, program);
        assert_eq!(report.ended, Ended::Exited(0), "{program}");
        assert!(report.calls > 50 && report.by_call["mmap"].succeeded > 10, "{program}");
        assert!(report.facts[&Fact::Begin] >= 2, "env and the program");
        let has = |fact| report.facts.contains_key(&fact);
        match program {
            "files" => assert!(has(Fact::FileName)),
            "stacks" => assert!(has(Fact::StackGrowth)),
            "states" => assert!(has(Fact::Driver) && report.by_call["prlimit64"].succeeded >= 2),
            "others" => assert!(has(Fact::SystemV) || has(Fact::AsyncRing)),
            "spawns" => assert!(report.forks >= 2 && report.facts[&Fact::Begin] >= 4),
            "forks" => assert!(report.forks == 3),
            "threads" => assert!(report.threads >= 6 && report.waited > 0),
            "replaced by a thread" => assert_eq!(report.facts[&Fact::Begin], 3),
            _ => {}
        }
    }
}

#[test]
fn it_ends_as_the_program_does() {
    let Some(machine) = machine() else { return };
    assert_eq!(mirrored(&machine, "aborts").ended, Ended::Killed(libc::SIGABRT));
    let report = mirror(&machine, &Command::new("sh", ["-c", "exit 7"])).unwrap();
    assert_eq!(report.ended, Ended::Exited(7));
    let report = mirror(&machine, &Command { limit: Some(3), ..command("sleeps") }).unwrap();
    assert!(report.limited && report.ended == Ended::Killed(libc::SIGKILL));
    assert!(report.divergences == 0 && report.calls > 10);
}

#[test]
fn what_cannot_be_mirrored_is_an_error() {
    let Some(machine) = machine() else { return };
    let error = |command| mirror(&machine, &command).unwrap_err();
    let none = error(Command::new("no-such-program", [""; 0]));
    assert!(matches!(&none, MirrorError::Start(_, error) if error.raw_os_error() == Some(2)));
    assert!(none.to_string().starts_with("no-such-program: "), "{none}");
    let unknown = error(command("unknown"));
    assert!(unknown.to_string().contains("prctl(PR_SET_MDWE), which is not modelled"), "{unknown}");
    // Nothing of it is left, and the next one is mirrored.
    mirrored(&machine, "merges");
}

/// Mirrors a program in a thread of its own, which does something before; fails where it hangs.
fn mirrored_in_time(command: Command, before: fn()) -> Result<Report, MirrorError> {
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        before();
        end.send(mirror(&Machine::here().unwrap(), &command)).unwrap();
    });
    // The mirror has not ended if nothing comes.
    ended.recv_timeout(std::time::Duration::from_secs(120)).unwrap()
}

#[test]
fn a_process_whose_parent_was_killed_as_it_forked_goes_on() {
    let Some(_) = machine() else { return };
    let report = mirrored_in_time(command("ends at forks"), || {}).unwrap();
    let shown: Vec<String> = report.shown.iter().map(ToString::to_string).collect();
    assert_eq!((report.divergences, report.resyncs), (0, 0), "{}", shown.join("\n"));
    assert_eq!(report.ended, Ended::Exited(0));
    assert!(report.forks >= 60 && report.threads >= 30);
    let forks = Command { limit: Some(2), ..command("forks without end") };
    assert!(mirrored_in_time(forks, || {}).unwrap().limited);
}

/// Takes all capabilities from this thread.
fn drop_privileges() {
    /// `_LINUX_CAPABILITY_VERSION_3`, and the thread that calls.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    let none = [[0_u32; 3]; 2];
    // SAFETY: the kernel reads two structures of three words.
    let set = unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), none.as_ptr()) };
    assert_eq!(set, 0);
}

#[test]
fn a_process_that_is_not_dumpable_is_an_error_without_privilege() {
    let Some(_) = machine() else { return };
    let error = mirrored_in_time(command("hides"), drop_privileges).unwrap_err();
    assert!(error.to_string().contains("(PR_SET_DUMPABLE)"), "{error}");
}

#[test]
fn what_a_picture_needs_is_noted() {
    let Some(machine) = machine() else { return };
    let report = mirror(&machine, &Command { record: true, ..command("merges") }).unwrap();
    let record = &report.record;
    assert_eq!(record.spaces.len(), 2, "env and the program");
    assert!(record.spans.iter().all(|span| span.from <= span.to && !span.range.is_empty()));
    let merges = record.moments.iter().filter(|moment| !moment.merged.is_empty()).count();
    assert!(merges >= 2, "{merges}");
}

// --- Wrong rules are found -----------------------------------------------------------------------

/// A first write is forgotten, so that what was written merges as if it had not been.
fn no_owner(mm: &Mirrored, op: &Op) -> Option<Outcome> {
    let Op::Touch { addr, access: Access::Write } = *op else { return None };
    let is_mapped = mm.lookup(addr).is_ok_and(|vma| vma.is_some());
    is_mapped.then_some(Outcome::Touched(Ok(())))
}

/// A stack does not grow.
fn no_growth(mm: &Mirrored, op: &Op) -> Option<Outcome> {
    let Op::Touch { addr, .. } = *op else { return None };
    let is_mapped = mm.lookup(addr).is_ok_and(|vma| vma.is_some());
    (!is_mapped).then_some(Outcome::Touched(Ok(())))
}

/// Memory that replaces a part of a hole merges with nothing above it.
fn no_merge_above(mm: &Mirrored, op: &Op) -> Option<Outcome> {
    let Op::Mmap { addr, len, prot, flags, file: None, .. } = *op else { return None };
    if flags & abi::MAP_FIXED == 0 {
        return None;
    }
    let (start, whole) = (addr + len, mm.lookup(addr + len).ok()??);
    // As if what is above were something else for the moment.
    mm.madvise(start, whole.0.end - start, abi::MADV_DONTDUMP).ok()?;
    let mapped = mm.mmap(addr, len, prot, flags, None, 0);
    Some(Outcome::of(mapped))
}

/// `mmap` with other flags.
fn forgets(mm: &Mirrored, op: &Op, flag: u64) -> Option<Outcome> {
    let Op::Mmap { addr, len, prot, flags, file: None, offset } = *op else { return None };
    (flags & flag != 0).then(|| Outcome::of(mm.mmap(addr, len, prot, flags & !flag, None, offset)))
}

fn is_special(mm: &Mirrored, addr: usize) -> bool {
    let vma = mm.lookup(addr).ok().flatten();
    vma.is_some_and(|(_, vma)| matches!(vma.source, Source::Special(_)))
}

/// The rules, and a program in which each shows.
const WRONG: &[(&str, &str, Rule)] = &[
    ("what was written merges as if it had not been", "merges", no_owner),
    ("nothing merges with what is above", "merges", no_merge_above),
    ("a stack does not grow", "stacks", no_growth),
    ("MAP_NORESERVE is forgotten", "threads", |mm, op| forgets(mm, op, abi::MAP_NORESERVE)),
    ("MAP_STACK means nothing", "threads", |mm, op| forgets(mm, op, abi::MAP_STACK)),
    ("MADV_DONTFORK is ignored", "forks", |_, op| match op {
        Op::Madvise { advice: abi::MADV_DONTFORK, .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
    ("a part of the kernel's own pages can be unmapped", "special", |mm, op| match *op {
        Op::Munmap { addr, len: PAGE } if is_special(mm, addr) => Some(Outcome::Returned(0)),
        _ => None,
    }),
    ("munmap unmaps a page less", "merges", |mm, op| match *op {
        Op::Munmap { addr, len } if len > PAGE => Some(Outcome::done(mm.munmap(addr, len - PAGE))),
        _ => None,
    }),
    ("guard pages are ignored", "states", |_, op| match op {
        Op::Madvise { advice: abi::MADV_GUARD_INSTALL, .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
    ("nothing is sealed", "states", |_, op| match op {
        Op::Mseal { .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
];

#[test]
fn each_wrong_rule_is_found() {
    let Some(machine) = machine() else { return };
    for (name, program, rule) in WRONG {
        let command = Command { rule: Some(*rule), ..command(program) };
        let report = mirror(&machine, &command).unwrap();
        assert!(report.divergences > 0 && report.resyncs > 0, "{name}");
        assert!(!report.shown.is_empty(), "{name}");
        println!("{name}: {}", report.shown[0]);
    }
}
