//! Starting a program that is traced from its first instruction on, and waiting for what it does.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, pid_t, sock_filter, user_regs_struct};

use crate::child::read_limit;
use crate::mirror::ask::file_of;
use crate::probe::Calls;
use crate::ptrace::{Traced, check};

/// System calls with numbers that `libc` does not have on all targets.
const SYS_PROCESS_MADVISE: c_long = 440;
const SYS_SET_MEMPOLICY_HOME_NODE: c_long = 450;
const SYS_MAP_SHADOW_STACK: c_long = 453;
const SYS_MSEAL: c_long = 462;

/// The system calls that a program is stopped at.
pub(crate) const STOPS: &[(c_long, &str)] = &[
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_pkey_mprotect, "pkey_mprotect"),
    (libc::SYS_mremap, "mremap"),
    (libc::SYS_madvise, "madvise"),
    (SYS_PROCESS_MADVISE, "process_madvise"),
    (libc::SYS_mlock, "mlock"),
    (libc::SYS_mlock2, "mlock2"),
    (libc::SYS_munlock, "munlock"),
    (libc::SYS_mlockall, "mlockall"),
    (libc::SYS_munlockall, "munlockall"),
    (libc::SYS_brk, "brk"),
    (SYS_MSEAL, "mseal"),
    (libc::SYS_msync, "msync"),
    (libc::SYS_mincore, "mincore"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_setrlimit, "setrlimit"),
    (libc::SYS_prlimit64, "prlimit64"),
    (libc::SYS_setuid, "setuid"),
    (libc::SYS_setreuid, "setreuid"),
    (libc::SYS_setresuid, "setresuid"),
    (libc::SYS_capset, "capset"),
    (libc::SYS_personality, "personality"),
    (libc::SYS_shmat, "shmat"),
    (libc::SYS_shmdt, "shmdt"),
    (libc::SYS_io_setup, "io_setup"),
    (libc::SYS_io_destroy, "io_destroy"),
    (libc::SYS_remap_file_pages, "remap_file_pages"),
    (libc::SYS_mbind, "mbind"),
    (SYS_SET_MEMPOLICY_HOME_NODE, "set_mempolicy_home_node"),
    (SYS_MAP_SHADOW_STACK, "map_shadow_stack"),
    (libc::SYS_arch_prctl, "arch_prctl"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_fork, "fork"),
    (libc::SYS_vfork, "vfork"),
];

/// The requests of `ioctl` that change mappings: `UFFDIO_REGISTER` and `UFFDIO_UNREGISTER`.
const REGISTERING: [u32; 2] = [0xc020_aa00, 0x8010_aa01];

/// What a stop at a call of another architecture says.
pub(crate) const FOREIGN: u64 = 1;

/// The filter of system calls: stops at those of the list, and lets the others through.
fn filter() -> Vec<sock_filter> {
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    const SECOND_ARGUMENT: u32 = 24;
    /// `AUDIT_ARCH_X86_64`.
    const X86_64: u32 = 0xc000_003e;
    /// The first number of the calls with short pointers.
    const SHORT: u32 = 0x4000_0000;
    let load = |k| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, k);
    let equal = |k, then, other| instruction(libc::BPF_JMP | libc::BPF_JEQ, then, other, k);
    let end = |k| instruction(libc::BPF_RET, 0, 0, k);
    let stop = |data: u64| end(libc::SECCOMP_RET_TRACE | u32::try_from(data).unwrap_or(0));
    let not_below = instruction(libc::BPF_JMP | libc::BPF_JGE, 0, 1, SHORT);
    let mut program = vec![
        load(ARCH),
        equal(X86_64, 1, 0),
        stop(FOREIGN),
        load(NUMBER),
        not_below,
        stop(FOREIGN),
    ];
    for (number, _) in STOPS.iter().filter(|(number, _)| *number != libc::SYS_ioctl) {
        program.extend([equal(u32::try_from(*number).unwrap_or(0), 0, 1), stop(0)]);
    }
    let ioctl = u32::try_from(libc::SYS_ioctl).unwrap_or(0);
    program.extend([equal(ioctl, 1, 0), end(libc::SECCOMP_RET_ALLOW), load(SECOND_ARGUMENT)]);
    for request in REGISTERING {
        program.extend([equal(request, 0, 1), stop(0)]);
    }
    program.push(end(libc::SECCOMP_RET_ALLOW));
    program
}

fn instruction(code: u32, then: u8, other: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or(0), jt: then, jf: other, k }
}

/// Finds a program as a shell does.
///
/// # Errors
///
/// `ENOENT` if there is none, and `EACCES` if there is one that may not be executed.
pub(crate) fn find(program: &Path) -> io::Result<PathBuf> {
    let is_program = |path: &Path| -> io::Result<()> {
        let about = fs::metadata(path)?;
        if about.is_file() && about.permissions().mode() & 0o111 != 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EACCES))
        }
    };
    if program.as_os_str().as_bytes().contains(&b'/') {
        return is_program(program).map(|()| program.to_owned());
    }
    let mut error = io::Error::from_raw_os_error(libc::ENOENT);
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    for folder in std::env::split_paths(&path) {
        let candidate = folder.join(program);
        match is_program(&candidate) {
            Ok(()) => return Ok(candidate),
            // Folders that may not be searched are as if they were empty.
            Err(refused) if candidate.exists() => error = refused,
            Err(_) => {}
        }
    }
    Err(error)
}

/// Starts a program, which stops first when it has replaced this one. Returns its number, or why it
/// could not be started.
pub(crate) fn start(
    program: &Path,
    arguments: &[std::ffi::OsString],
    output_to_errors: bool,
) -> io::Result<pid_t> {
    let path = CString::new(find(program)?.as_os_str().as_bytes())?;
    let all = std::iter::once(program.as_os_str()).chain(arguments.iter().map(|a| a.as_os_str()));
    let strings: Vec<CString> =
        all.map(|a| CString::new(a.as_bytes())).collect::<Result<_, _>>()?;
    let argv: Vec<_> = strings.iter().map(|a| a.as_ptr()).chain([ptr::null()]).collect();
    let filter = filter();
    let (go, mut gone) = io::pipe()?;
    let (mut failure, mut fails) = io::pipe()?;
    // SAFETY: the child makes only system calls, on memory that was there before.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(gone);
        let error = become_program(go, &path, &argv, &filter, output_to_errors);
        let _ = fails.write_all(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        // SAFETY: ends the child.
        unsafe { libc::_exit(127) };
    }
    check(pid.into())?;
    allow_files();
    drop((go, fails));
    let options = libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEEXIT
        | libc::PTRACE_O_TRACESECCOMP;
    let options = usize::try_from(options).unwrap_or(0);
    let seized = Traced(pid).request(libc::PTRACE_SEIZE, 0, options);
    if seized.is_ok() {
        gone.write_all(&[1])?;
    }
    drop(gone);
    // The other end is closed by the exec, before the program stops.
    let mut bytes = [0; size_of::<c_int>()];
    let failed = failure.read_exact(&mut bytes).is_ok();
    if let Err(error) = seized {
        let mut status = 0;
        // SAFETY: the kernel writes a status to where there is one.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        return Err(error);
    }
    if failed {
        // It stops once more when it exits.
        while let Some(Event { tid, status }) = wait()? {
            if tid == pid && !libc::WIFSTOPPED(status) {
                break;
            }
            let _ = Traced(tid).request(libc::PTRACE_CONT, 0, 0);
        }
        return Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(bytes)));
    }
    Ok(pid)
}

/// Lets this process have as many files open as it may: those that are mapped are held. The program
/// has the limit that was there before.
fn allow_files() {
    let Ok(limit) = read_limit(0, libc::RLIMIT_NOFILE) else { return };
    let new = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // If it fails, there are as many as before.
    // SAFETY: reads from a limit that is there.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const new) };
}

/// Runs in the child: it waits until it is traced, and becomes the program. Returns why it could
/// not.
fn become_program(
    mut go: io::PipeReader,
    path: &CString,
    argv: &[*const libc::c_char],
    filter: &[sock_filter],
    output_to_errors: bool,
) -> io::Error {
    if let Err(error) = go.read_exact(&mut [0]) {
        return error;
    }
    // As the standard library does for its children: it ignores the signal itself.
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let one: libc::c_ulong = 1;
    // Where huge pages are decides which pages become anonymous, and is not in the map.
    // SAFETY: changes this process's way of making pages only.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, one, 0, 0, 0) };
    // Without it the filter is for the privileged.
    // SAFETY: takes numbers.
    let mut done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, 0, 0, 0) };
    if done == 0 && output_to_errors {
        // SAFETY: takes numbers.
        done = unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) }.min(0);
    }
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(0),
        filter: filter.as_ptr().cast_mut(),
    };
    if done == 0 {
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel reads as many instructions as there are.
        done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    }
    if done == 0 {
        // SAFETY: a string, and a list of strings that ends with a null pointer.
        unsafe { libc::execv(path.as_ptr(), argv.as_ptr()) };
    }
    io::Error::last_os_error()
}

/// Starts a process that does nothing, and ends after a time: the end is an event.
pub(crate) fn alarm(seconds: u32) -> io::Result<pid_t> {
    // SAFETY: the child makes only system calls.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        return check(pid.into()).map(|_| pid);
    }
    let signal = libc::c_ulong::try_from(libc::SIGKILL).unwrap_or(0);
    // Nobody is to wait for the end of a pipe that it holds.
    // SAFETY: takes numbers, and the child uses no descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    // It ends with its parent.
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) };
    let time = libc::timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    // SAFETY: reads a time that is there.
    unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
    // SAFETY: ends the child.
    unsafe { libc::_exit(0) }
}

/// Kills a process.
pub(crate) fn kill(pid: pid_t) {
    // SAFETY: takes numbers. The process is a child of this one, or traced by it, that was not
    // waited for, so the number is its.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Sends a signal to a thread that is traced.
fn send(tid: pid_t, signal: c_int) {
    // SAFETY: takes numbers. The thread was not waited for, so the number is its.
    unsafe { libc::syscall(libc::SYS_tkill, tid, signal) };
}

/// What has become of a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) tid: pid_t,
    pub(crate) status: c_int,
}

/// Waits for one of the threads that this thread traces, or has started; `None` if there are none
/// any more.
pub(crate) fn wait() -> io::Result<Option<Event>> {
    wait_for(-1, 0)
}

/// As [`wait`], and `None` at some time, too.
pub(crate) fn wait_until(end: Instant) -> io::Result<Option<Event>> {
    loop {
        match wait_for(-1, libc::WNOHANG)? {
            Some(Event { tid: 0, .. }) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            event => return Ok(event.filter(|event| event.tid != 0)),
        }
    }
}

/// With `WNOHANG`, the thread 0 is none yet.
fn wait_for(pid: pid_t, how: c_int) -> io::Result<Option<Event>> {
    loop {
        let mut status = 0;
        let options = libc::__WALL | libc::__WNOTHREAD | how;
        // SAFETY: the kernel writes a status to where there is one.
        let tid = unsafe { libc::waitpid(pid, &raw mut status, options) };
        match check(tid.into()) {
            Ok(_) => return Ok(Some(Event { tid, status })),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Reads memory of a thread as far as the thread itself could read it.
pub(crate) fn read(tid: pid_t, addr: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let addr = usize::try_from(addr).map_err(io::Error::other)?;
    let there = ptr::with_exposed_provenance_mut(addr);
    let from = libc::iovec { iov_base: there, iov_len: bytes.len() };
    let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel writes at most as many bytes as there are.
    let read = unsafe { libc::process_vm_readv(tid, &raw const to, 1, &raw const from, 1, 0) };
    check(read as c_long)?;
    usize::try_from(read).map_err(io::Error::other)
}

/// Reads numbers of 64 bits.
pub(crate) fn read_words<const N: usize>(tid: pid_t, addr: u64) -> io::Result<[u64; N]> {
    let mut words = [0; N];
    for (word, at) in words.iter_mut().zip((addr..).step_by(8)) {
        let mut bytes = [0; 8];
        if read(tid, at, &mut bytes)? < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(words)
}

/// Whether a program has 64-bit instructions, by their segment.
pub(crate) fn has_64_bits(tid: pid_t) -> io::Result<bool> {
    const SEGMENT: u64 = 0x33;
    Ok(Traced(tid).registers()?.cs == SEGMENT)
}

/// A program that has just begun, in which calls can be made before its first instruction.
pub(crate) struct Begun {
    tid: pid_t,
    /// The registers of its first instruction.
    registers: user_regs_struct,
    /// The address of an instruction of the kernel's that makes a system call.
    instruction: u64,
    /// Signals that came meanwhile, each once.
    signals: BTreeMap<c_int, ()>,
}

impl Begun {
    /// `code` is where the kernel's own instructions are.
    pub(crate) fn new(tid: pid_t, code: std::ops::Range<usize>) -> io::Result<Self> {
        let mut bytes = vec![0; code.len()];
        let len = read(tid, code.start as u64, &mut bytes)?;
        let at = bytes[..len].windows(2).position(|bytes| bytes == [0x0f, 0x05]);
        let at = at.ok_or_else(|| io::Error::other("[vdso] has no system call"))?;
        let mut begun = Self {
            tid,
            registers: Traced(tid).registers()?,
            instruction: (code.start + at) as u64,
            signals: BTreeMap::new(),
        };
        // To the end of the system call that has begun it.
        begun.run_to_syscall()?;
        begun.registers = Traced(tid).registers()?;
        Ok(begun)
    }

    /// Lets it run to the next stop at a system call that is no event.
    fn run_to_syscall(&mut self) -> io::Result<()> {
        loop {
            Traced(self.tid).request(libc::PTRACE_SYSCALL, 0, 0)?;
            let event = wait_for(self.tid, 0)?;
            let status = event.map_or(0, |event| event.status);
            if !libc::WIFSTOPPED(status) {
                // It was killed, and this was its end.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            match libc::WSTOPSIG(status) {
                signal if signal == libc::SIGTRAP | 0x80 => return Ok(()),
                signal if status >> 16 == 0 => _ = self.signals.insert(signal, ()),
                _ => {}
            }
        }
    }

    /// Puts everything back as it was.
    pub(crate) fn end(self) -> io::Result<()> {
        let registers = user_regs_struct { orig_rax: u64::MAX, ..self.registers };
        Traced(self.tid).set_registers(&registers)?;
        for signal in self.signals.into_keys() {
            send(self.tid, signal);
        }
        Ok(())
    }
}

impl Calls for Begun {
    fn call(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<i64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        Traced(self.tid).set_registers(&user_regs_struct {
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            rax: u64::try_from(number).unwrap_or(u64::MAX),
            orig_rax: u64::MAX,
            rip: self.instruction,
            ..self.registers
        })?;
        // In, and out.
        self.run_to_syscall()?;
        self.run_to_syscall()?;
        Ok(Traced(self.tid).registers()?.rax.cast_signed())
    }

    fn smaps(&self) -> io::Result<String> {
        file_of(self.tid, "smaps")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(find(Path::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(find(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        let error = |path: &str| find(Path::new(path)).unwrap_err().raw_os_error();
        assert_eq!(error("no-such-program"), Some(libc::ENOENT));
        assert_eq!(error("/etc/passwd"), Some(libc::EACCES));
        assert_eq!(error("/"), Some(libc::EACCES));
    }

    #[test]
    fn each_jump_of_the_filter_stays_in_it() {
        let program = filter();
        for (at, step) in program.iter().enumerate() {
            let furthest = at + 1 + usize::from(step.jt.max(step.jf));
            let ends = u32::from(step.code) & 7 == libc::BPF_RET;
            assert!(ends || furthest < program.len());
        }
        assert_eq!(u32::from(program[program.len() - 1].code), libc::BPF_RET);
    }
}
