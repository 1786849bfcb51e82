//! Requests about a thread that this one traces, which has stopped.

use std::io;

use libc::{c_long, c_uint, pid_t, user_regs_struct};

/// A traced thread, by its number. Only the thread that traces it can ask about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traced(pub(crate) pid_t);

pub(crate) fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Traced {
    /// Makes a request that takes numbers.
    pub(crate) fn request(self, request: c_uint, addr: usize, data: usize) -> io::Result<()> {
        // SAFETY: these requests take numbers, and change the other process's memory only.
        check(unsafe { libc::ptrace(request, self.0, addr, data) }).map(drop)
    }

    /// Its registers.
    pub(crate) fn registers(self) -> io::Result<user_regs_struct> {
        // SAFETY: integers, for which zero is a value.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        let to = std::ptr::from_mut(&mut registers);
        // SAFETY: the kernel writes registers to where there are some.
        check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.0, 0, to) })?;
        Ok(registers)
    }

    /// Sets its registers.
    pub(crate) fn set_registers(self, registers: &user_regs_struct) -> io::Result<()> {
        let from = std::ptr::from_ref(registers);
        // SAFETY: the kernel reads registers from where there are some.
        check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.0, 0, from) }).map(drop)
    }

    /// The number that comes with an event: that of a child, or the status of an exit.
    pub(crate) fn message(self) -> io::Result<u64> {
        let mut number: libc::c_ulong = 0;
        let to = std::ptr::from_mut(&mut number);
        // SAFETY: the kernel writes a long to where there is one.
        check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, self.0, 0, to) })?;
        Ok(number)
    }

    /// The number that comes with an event. If the thread was killed meanwhile and stands at its
    /// exit, the error is `ESRCH`, as if it had not come so far yet.
    pub(crate) fn message_of(self, event: i32) -> io::Result<u64> {
        // Who is at the event after the question was there before it.
        let number = self.message()?;
        if self.signal_code()? >> 8 == event {
            Ok(number)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    }

    /// The number and the code of the signal that stopped it.
    pub(crate) fn signal_code(self) -> io::Result<i32> {
        // SAFETY: plain data, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let to = std::ptr::from_mut(&mut info);
        // SAFETY: the kernel writes a siginfo to where there is one.
        check(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, self.0, 0, to) })?;
        Ok(info.si_code)
    }
}
