//! The program as the host has it: a traced process, whose threads stop at mapping calls.
#![expect(unsafe_code, reason = "tracing takes pointers to what the kernel reads and writes")]

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use libc::{c_int, c_long, c_uint, pid_t, user_regs_struct};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::Result;

/// The number of `mseal`, which `libc` does not have everywhere.
pub(crate) const SYS_MSEAL: i64 = 462;

/// The calls that are stopped. The last ones map what only the kernel knows.
const CALLS: [(i64, &str); 16] = [
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_pkey_mprotect, "pkey_mprotect"),
    (libc::SYS_mremap, "mremap"),
    (libc::SYS_madvise, "madvise"),
    (libc::SYS_brk, "brk"),
    (libc::SYS_mlock, "mlock"),
    (libc::SYS_mlock2, "mlock2"),
    (libc::SYS_munlock, "munlock"),
    (libc::SYS_mlockall, "mlockall"),
    (libc::SYS_munlockall, "munlockall"),
    (SYS_MSEAL, "mseal"),
    (libc::SYS_shmat, "shmat"),
    (libc::SYS_shmdt, "shmdt"),
    (libc::SYS_remap_file_pages, "remap_file_pages"),
];

/// The name of a call that is stopped.
pub(crate) fn name(number: i64) -> &'static str {
    CALLS.iter().find(|(call, _)| *call == number).map_or("another call", |(_, name)| name)
}

/// A thread of the program, which is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(pid_t);

/// A call that a thread is about to make.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
}

/// What has happened to the program.
#[derive(Debug)]
pub(crate) enum Event {
    /// A thread has stopped at a mapping call.
    Call(Thread, Call),
    /// Another program begins in the process, with memory of its own.
    Begins(Thread),
    /// The program is about to end, and its memory is still there.
    Ends(Thread),
    /// It has ended, with this status.
    Ended(u8),
}

/// The traced process. Only the thread that has started it can trace it.
#[derive(Debug)]
pub(crate) struct Host {
    pid: pid_t,
    threads: BTreeSet<pid_t>,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs in the child before it becomes the program: it is traced, and filtered, from now on.
fn prepare(filter: &BpfProgram) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) })?;
    seccompiler::apply_filter(filter).map_err(|_| io::Error::last_os_error())
}

impl Host {
    /// Starts the program, which stops before its first instruction.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let rules = CALLS.map(|(number, _)| (number, Vec::new())).into();
        let (others, traced) = (SeccompAction::Allow, SeccompAction::Trace(0));
        let filter = SeccompFilter::new(rules, others, traced, std::env::consts::ARCH.try_into()?)?;
        let filter: BpfProgram = filter.try_into()?;
        // SAFETY: `prepare` makes only system calls, which a fork's child may do.
        unsafe { command.pre_exec(move || prepare(&filter)) };
        let pid = pid_t::try_from(command.spawn()?.id())?;
        let host = Self { pid, threads: [pid].into() };
        host.wait_for(pid)?;
        let options = libc::PTRACE_O_EXITKILL
            | libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACEEXIT;
        host.request(libc::PTRACE_SETOPTIONS, pid, options.into())?;
        Ok(host)
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// How many threads it has had.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Lets the program begin.
    pub(crate) fn begin(&self) -> Result<()> {
        self.go_on(Thread(self.pid))
    }

    /// Lets a thread that has stopped go on.
    pub(crate) fn go_on(&self, thread: Thread) -> Result<()> {
        Ok(self.request(libc::PTRACE_CONT, thread.0, 0)?)
    }

    /// Waits until some thread stops at a call, or the program ends.
    pub(crate) fn wait(&mut self) -> Result<Event> {
        loop {
            let (thread, status) = self.wait_for(-1)?;
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                if thread != self.pid {
                    continue;
                }
                let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 255 };
                return Ok(Event::Ended(u8::try_from(code)?));
            }
            match (status >> 16, libc::WSTOPSIG(status)) {
                (libc::PTRACE_EVENT_SECCOMP, _) => {
                    let registers = self.registers(thread)?;
                    let user_regs_struct { rdi, rsi, rdx, r10, r8, r9, .. } = registers;
                    let number = registers.orig_rax.cast_signed();
                    let call = Call { number, arguments: [rdi, rsi, rdx, r10, r8, r9] };
                    return Ok(Event::Call(Thread(thread), call));
                }
                (libc::PTRACE_EVENT_EXEC, _) => return Ok(Event::Begins(Thread(thread))),
                (libc::PTRACE_EVENT_EXIT, _) if thread == self.pid => {
                    return Ok(Event::Ends(Thread(thread)));
                }
                // A new thread stops first of all.
                (0, _) if self.threads.insert(thread) => {
                    self.request(libc::PTRACE_CONT, thread, 0)?;
                }
                (0, signal) => self.request(libc::PTRACE_CONT, thread, signal.into())?,
                _ => self.request(libc::PTRACE_CONT, thread, 0)?,
            }
        }
    }

    /// Has a thread make a call, whatever the one was that it has stopped at. Returns the result.
    pub(crate) fn make(&self, thread: Thread, number: i64, arguments: [u64; 6]) -> Result<i64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let orig_rax = number.cast_unsigned();
        let registers = self.registers(thread.0)?;
        let registers = user_regs_struct { rdi, rsi, rdx, r10, r8, r9, orig_rax, ..registers };
        self.set_registers(thread.0, &registers)?;
        self.request(libc::PTRACE_SYSCALL, thread.0, 0)?;
        // Other threads that stop meanwhile wait until it is their turn.
        self.wait_for(thread.0)?;
        Ok(self.registers(thread.0)?.rax.cast_signed())
    }

    /// Lets a thread go on behind its call, with this result. A call changes no other register. If
    /// none was made in its place, it is not made either.
    pub(crate) fn resume(&self, thread: Thread, call: &Call, result: i64) -> Result<()> {
        let [rdi, rsi, rdx, r10, r8, r9] = call.arguments;
        let (rax, orig_rax) = (result.cast_unsigned(), u64::MAX);
        let registers = self.registers(thread.0)?;
        let registers = user_regs_struct { rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..registers };
        self.set_registers(thread.0, &registers)?;
        self.go_on(thread)
    }

    fn wait_for(&self, thread: pid_t) -> io::Result<(pid_t, c_int)> {
        let mut status = 0;
        // SAFETY: the kernel writes a status to where there is one.
        let thread = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        check(thread.into()).map(|_| (thread, status))
    }

    fn registers(&self, thread: pid_t) -> io::Result<user_regs_struct> {
        // SAFETY: integers, for which zero is a value.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        let to = ptr::from_mut(&mut registers);
        // SAFETY: the kernel writes registers to where there are some.
        check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, 0, to) })?;
        Ok(registers)
    }

    fn set_registers(&self, thread: pid_t, registers: &user_regs_struct) -> io::Result<()> {
        let from = ptr::from_ref(registers);
        // SAFETY: the kernel reads registers from where there are some.
        check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, from) }).map(drop)
    }

    fn request(&self, request: c_uint, thread: pid_t, data: c_long) -> io::Result<()> {
        // SAFETY: these requests take numbers.
        check(unsafe { libc::ptrace(request, thread, 0, data) }).map(drop)
    }
}
