//! A process that makes the calls, stopped between them: its tracer sets its registers, lets it run
//! one instruction and reads them again. Nothing of its own is left in its memory but the page with
//! those instructions, so its whole map is known.

use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use libc::{c_int, c_long, pid_t, user_regs_struct};
use pervma_linux::{Access, Layout, Limits, Signal, abi};

/// Where the page with the instructions is.
pub const CODE: usize = 0x2000_0000;
/// `syscall`; `mov al, [rdi]`; `mov [rdi], al`.
const INSTRUCTIONS: u64 = u64::from_le_bytes([0x0f, 0x05, 0x8a, 0x07, 0x88, 0x07, 0x90, 0x90]);
const READ: u64 = 2;
const WRITE: u64 = 4;
/// Not an address, so that an instruction that has been fetched goes no further: pages hold zeros and
/// ones, which add to what `rax` or `rcx` points to.
const NOWHERE: u64 = 0x8000_0000_0000_0000;

/// Descriptors of the files in the child, one after the other from this one on.
pub const FIRST_FD: c_int = 40;

/// The process. Only the thread that made it can speak to it.
#[derive(Debug)]
pub struct Child {
    pid: pid_t,
    /// What the registers were when it stopped first: segments and flags.
    registers: user_regs_struct,
    maps: File,
    /// How much of the maps file is read at once.
    buffer: Vec<u8>,
    thread: PhantomData<*const ()>,
}

/// What is known about a process before its first call.
#[derive(Clone, Copy, Debug)]
pub struct Born {
    /// Where things are in it.
    pub layout: Layout,
    /// Its limits.
    pub limits: Limits,
    /// Whether addresses are random.
    pub randomized: bool,
    /// Whether the kernel marks mappings with guard pages.
    pub marks_guards: bool,
    /// What it has not been able to drop, as a set of bits.
    capabilities: u64,
}

/// Memory may be locked without limit.
pub const CAP_IPC_LOCK: u32 = 14;
/// Low addresses may be mapped.
pub const CAP_SYS_RAWIO: u32 = 17;
/// Memory may be damaged.
pub const CAP_SYS_ADMIN: u32 = 21;

impl Born {
    /// Whether it has the capability.
    pub fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 != 0
    }
}

/// Bytes of a stack, and of locked memory, if no limit is in the way: where the search for room
/// begins depends on it.
const EIGHT_MIB: u64 = 8 << 20;

/// Whether the processor takes it for an address: it extends 48 bits by their sign.
fn is_canonical(addr: usize) -> bool {
    matches!(addr >> 47, 0 | 0x1_ffff)
}

fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Child {
    /// Starts a process with `files` as its descriptors, and empties its memory.
    pub fn spawn(files: &[OwnedFd]) -> io::Result<(Self, Born)> {
        let descriptors: Vec<c_int> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("/proc/self/exe");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: `prepare` makes nothing but system calls, which a fork's child may do.
        unsafe { command.pre_exec(move || prepare(&descriptors)) };
        // Nobody waits through the handle: the tracer does.
        let pid = pid_t::try_from(command.spawn()?.id()).map_err(io::Error::other)?;
        let mut child = Self {
            pid,
            // SAFETY: integers, for which zero is a value.
            registers: unsafe { std::mem::zeroed() },
            maps: File::open(format!("/proc/{pid}/maps"))?,
            buffer: vec![0; 1 << 16],
            thread: PhantomData,
        };
        child.wait()?;
        child.maps = File::open(format!("/proc/{pid}/maps"))?;
        let born = child.empty()?;
        Ok((child, born))
    }

    /// Unmaps everything but a page of instructions.
    fn empty(&mut self) -> io::Result<Born> {
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEFORK;
        self.request(libc::PTRACE_SETOPTIONS, 0, usize::try_from(options).unwrap_or(0))?;
        self.registers = self.read_registers()?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let personality = fs::read_to_string(format!("/proc/{}/personality", self.pid))?;
        let no_random = u64::try_from(libc::ADDR_NO_RANDOMIZE).unwrap_or(0);
        let personality = u64::from_str_radix(personality.trim(), 16).unwrap_or(0);
        // Counted from the state, which follows the name in parentheses and is the third.
        let fields: Vec<usize> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);

        // The program's first instruction gives way to a system call.
        let entry = usize::try_from(self.registers.rip).map_err(io::Error::other)?;
        self.poke(entry, INSTRUCTIONS)?;
        let flags = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS | abi::MAP_FIXED_NOREPLACE;
        let all = abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC;
        let page = abi::PAGE as u64;
        let code = CODE as u64;
        self.must(libc::SYS_mmap, [code, page, all, flags, u64::MAX, 0])?;
        self.poke(CODE, INSTRUCTIONS)?;
        self.registers.rip = code;
        let not_writable = abi::PROT_READ | abi::PROT_EXEC;
        self.must(libc::SYS_mprotect, [code, page, not_writable, 0, 0, 0])?;
        let layout = Layout::default();
        let end = layout.task_size as u64;
        self.must(libc::SYS_munmap, [code + page, end - code - page, 0, 0, 0, 0])?;

        // The highest room there is says where the search for room begins.
        let anonymous = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS;
        let top = self.must(libc::SYS_mmap, [0, page, 0, anonymous, u64::MAX, 0])?;
        let guard = u64::try_from(abi::MADV_GUARD_INSTALL).unwrap_or(0);
        self.must(libc::SYS_madvise, [top, page, guard, 0, 0, 0])?;
        let marks_guards = self.file("smaps")?.lines().any(|line| line.ends_with(" gu "));
        self.must(libc::SYS_munmap, [top, page, 0, 0, 0, 0])?;
        // A hint below what may be chosen is one to the lowest address that may.
        let lowest = self.must(libc::SYS_mmap, [page, page, 0, anonymous, u64::MAX, 0])?;
        self.must(libc::SYS_munmap, [lowest, page, 0, 0, 0, 0])?;
        let brk = self.must(libc::SYS_brk, [0; 6])?;
        let word = |word: u64| usize::try_from(word).map_err(io::Error::other);
        let min_addr = fs::read_to_string("/proc/sys/vm/mmap_min_addr")?;
        let layout = Layout {
            mmap_base: word(top)? + abi::PAGE,
            lowest_choice: word(lowest)?,
            mmap_min_addr: min_addr.trim().parse().map_err(io::Error::other)?,
            start_brk: field(47),
            brk: word(brk)?,
            data_size: field(46).wrapping_sub(field(45)),
            start_stack: field(28),
            ..layout
        };
        let limits = Limits {
            address_space: read_limit(self.pid, libc::RLIMIT_AS)?.rlim_cur,
            data: read_limit(self.pid, libc::RLIMIT_DATA)?.rlim_cur,
            data_max: read_limit(self.pid, libc::RLIMIT_DATA)?.rlim_max,
            locked: read_limit(self.pid, libc::RLIMIT_MEMLOCK)?.rlim_cur,
            stack: read_limit(self.pid, libc::RLIMIT_STACK)?.rlim_cur,
        };
        let status = self.file("status")?;
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = u64::from_str_radix(capabilities.unwrap_or_default().trim(), 16)
            .map_err(io::Error::other)?;
        let randomized = personality & no_random == 0;
        Ok(Born { layout, limits, randomized, marks_guards, capabilities })
    }

    /// Makes a system call; returns what the processor has in `rax` then.
    pub fn call(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<i64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let rax = u64::try_from(number).unwrap_or(u64::MAX);
        self.step(user_regs_struct {
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            rax,
            orig_rax: u64::MAX,
            ..self.registers
        })?;
        self.wait()?;
        Ok(self.read_registers()?.rax.cast_signed())
    }

    /// A call of the preparation, which must succeed.
    fn must(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<u64> {
        let result = self.call(number, arguments)?;
        match i32::try_from(result) {
            Ok(error @ -4095..0) => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(result.cast_unsigned()),
        }
    }

    /// Touches a byte.
    pub fn touch(&mut self, addr: usize, access: Access) -> io::Result<Result<(), Signal>> {
        let code = self.registers.rip;
        let read_or_write = |rip| user_regs_struct {
            rdi: addr as u64,
            rip,
            rax: 0,
            orig_rax: u64::MAX,
            ..self.registers
        };
        match access {
            Access::Read => self.step(read_or_write(code + READ))?,
            Access::Write => self.step(read_or_write(code + WRITE))?,
            // A single step would look at the instruction first, as the tracer.
            Access::Execute => self.go_on(user_regs_struct {
                rip: addr as u64,
                orig_rax: u64::MAX,
                rax: NOWHERE,
                rcx: NOWHERE,
                ..self.registers
            })?,
        }
        let signal = self.wait()?;
        if signal == libc::SIGTRAP {
            return Ok(Ok(()));
        }
        // SAFETY: plain data, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let to = std::ptr::from_mut(&mut info);
        // SAFETY: the kernel writes a siginfo to where there is one.
        check(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, self.pid, 0, to) })?;
        /// `SI_KERNEL`: the processor gives no address.
        const KERNEL: c_int = 0x80;
        Ok(match (signal, info.si_code) {
            (libc::SIGSEGV, 1) => Err(Signal::NotMapped),
            (libc::SIGSEGV, 2) => Err(Signal::NotAllowed),
            // The instruction was fetched, and went no further; if there can be one.
            (libc::SIGSEGV, KERNEL) if access == Access::Execute && is_canonical(addr) => Ok(()),
            (libc::SIGSEGV, KERNEL) => Err(Signal::NotAnAddress),
            (libc::SIGBUS, _) => Err(Signal::Bus),
            _ => return Err(io::Error::other(format!("unexpected signal {signal}"))),
        })
    }

    /// Forks; the child is a child of this process too, and stopped. Or the error number, negated.
    pub fn fork(&mut self) -> io::Result<Result<Self, i64>> {
        let flags = u64::try_from(libc::CLONE_PARENT | libc::SIGCHLD).unwrap_or(0);
        self.step(user_regs_struct {
            rdi: flags,
            rsi: 0,
            rdx: 0,
            r10: 0,
            r8: 0,
            rax: u64::try_from(libc::SYS_clone).unwrap_or(0),
            orig_rax: u64::MAX,
            ..self.registers
        })?;
        if self.wait_for_status()? >> 16 != libc::PTRACE_EVENT_FORK {
            return Ok(Err(self.read_registers()?.rax.cast_signed()));
        }
        let mut number: libc::c_ulong = 0;
        let to = std::ptr::from_mut(&mut number);
        // SAFETY: the kernel writes a long to where there is one.
        check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, self.pid, 0, to) })?;
        let pid = pid_t::try_from(number).map_err(io::Error::other)?;
        let child = Self {
            pid,
            registers: self.registers,
            maps: File::open(format!("/proc/{pid}/maps"))?,
            buffer: vec![0; self.buffer.len()],
            thread: PhantomData,
        };
        child.wait()?;
        // The parent is still inside of the call.
        self.request(libc::PTRACE_SINGLESTEP, 0, 0)?;
        self.wait()?;
        Ok(Ok(child))
    }

    /// A limit, soft and hard.
    pub fn limit(&self, resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
        read_limit(self.pid, resource)
    }

    /// Sets a limit.
    pub fn set_limit(
        &self,
        resource: libc::__rlimit_resource_t,
        new: libc::rlimit,
    ) -> io::Result<()> {
        // SAFETY: reads from a limit that is there.
        let set =
            unsafe { libc::prlimit(self.pid, resource, &raw const new, std::ptr::null_mut()) };
        check(c_long::from(set)).map(drop)
    }

    /// Its maps file, as it is.
    pub fn maps(&mut self) -> io::Result<&[u8]> {
        let mut len = 0;
        loop {
            if len + 4096 > self.buffer.len() {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
            match self.maps.read_at(&mut self.buffer[len..], len as u64)? {
                0 => return Ok(&self.buffer[..len]),
                read => len += read,
            }
        }
    }

    /// Another file about it.
    pub fn file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid))
    }

    fn step(&self, registers: user_regs_struct) -> io::Result<()> {
        self.write_registers(registers)?;
        self.request(libc::PTRACE_SINGLESTEP, 0, 0)
    }

    fn go_on(&self, registers: user_regs_struct) -> io::Result<()> {
        self.write_registers(registers)?;
        self.request(libc::PTRACE_CONT, 0, 0)
    }

    fn write_registers(&self, registers: user_regs_struct) -> io::Result<()> {
        let from = std::ptr::from_ref(&registers);
        // SAFETY: the kernel reads registers from where there are some.
        check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.pid, 0, from) }).map(drop)
    }

    fn read_registers(&self) -> io::Result<user_regs_struct> {
        // SAFETY: integers, for which zero is a value.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        let to = std::ptr::from_mut(&mut registers);
        // SAFETY: the kernel writes registers to where there are some.
        check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.pid, 0, to) })?;
        Ok(registers)
    }

    fn poke(&self, addr: usize, word: u64) -> io::Result<()> {
        self.request(libc::PTRACE_POKEDATA, addr, usize::try_from(word).unwrap_or(0))
    }

    fn request(&self, request: libc::c_uint, addr: usize, data: usize) -> io::Result<()> {
        // SAFETY: these requests take numbers, and change the child's memory only.
        check(unsafe { libc::ptrace(request, self.pid, addr, data) }).map(drop)
    }

    /// Waits until it has stopped; returns the signal that stopped it.
    fn wait(&self) -> io::Result<c_int> {
        self.wait_for_status().map(|status| libc::WSTOPSIG(status))
    }

    /// Waits until it has stopped; returns the signal and the event that stopped it.
    fn wait_for_status(&self) -> io::Result<c_int> {
        let mut status = 0;
        // SAFETY: the kernel writes a status to where there is one.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        check(c_long::from(waited))?;
        if libc::WIFSTOPPED(status) {
            return Ok(status);
        }
        Err(io::Error::other(format!("the child has ended with status {status:#x}")))
    }
}

/// Of a process; 0 is this one.
pub fn read_limit(pid: pid_t, resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a limit that is there.
    let read = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut limit) };
    check(c_long::from(read))?;
    Ok(limit)
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: the process is a child of this one that nobody else waits for, so the number is its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above; the kernel writes a status to where there is one.
        unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
    }
}

/// In the child, before it becomes another program: descriptors, no privilege that suspends limits,
/// no randomness, and traced from now on.
fn prepare(files: &[c_int]) -> io::Result<()> {
    for (file, number) in files.iter().zip(FIRST_FD..) {
        // SAFETY: descriptors of this process; the copy stays open across the exec.
        check(c_long::from(unsafe { libc::dup2(*file, number) }))?;
    }
    for capability in [CAP_IPC_LOCK, CAP_SYS_RAWIO, CAP_SYS_ADMIN] {
        // Fails without privilege, when there is nothing to drop.
        // SAFETY: changes this process's capabilities only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    }
    for resource in [libc::RLIMIT_STACK, libc::RLIMIT_MEMLOCK] {
        let old = read_limit(0, resource)?;
        let new = libc::rlimit { rlim_cur: EIGHT_MIB.min(old.rlim_max), ..old };
        // SAFETY: reads from a limit that is there.
        check(c_long::from(unsafe { libc::setrlimit(resource, &raw const new) }))?;
    }
    let no_random = libc::c_ulong::try_from(libc::ADDR_NO_RANDOMIZE).unwrap_or(0);
    // Where it is refused, addresses are random.
    // SAFETY: changes this process's execution domain only.
    unsafe { libc::personality(no_random) };
    // SAFETY: takes no pointer.
    check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).map(drop)
}
