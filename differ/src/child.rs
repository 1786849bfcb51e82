//! A traced process that makes the calls. It is stopped between them: its tracer sets its
//! registers, lets it run one instruction and reads them again. Its memory is empty except for the
//! page with those instructions and the kernel's own pages, so its whole map is known.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use libc::{c_int, c_long, pid_t, user_regs_struct};
use pervma_linux::{
    Access, Config, Layout, Limits, Mm, NoBacking, Signal, Source, StdPlatform, VmFlags, abi,
};

use crate::compare::NAMELESS;
use crate::op::{Capability, NAMES};
use crate::probe::{Calls, Probed, probe};
use crate::ptrace::{Traced, check};

/// The address of the page with the instructions.
pub(crate) const CODE: usize = 0x2000_0000;
/// The instructions `syscall`, `mov al, [rdi]` and `mov [rdi], al`.
const INSTRUCTIONS: u64 = u64::from_le_bytes([0x0f, 0x05, 0x8a, 0x07, 0x88, 0x07, 0x90, 0x90]);
const READ: u64 = 2;
const WRITE: u64 = 4;
/// A value that is no valid address. Pages hold zeros and ones, which as instructions add to the
/// memory that `rax` or `rcx` points to: with this in both, a fetched instruction does nothing.
const NOWHERE: u64 = 0x8000_0000_0000_0000;

/// The address of the names for anonymous memory, in the same page, and the bytes from each to the
/// next.
const NAMES_AT: usize = CODE + 0x400;
const NAME_SIZE: usize = 0x60;
/// The path of the file of a process's memory, and its address in the same page.
const MEMORY_FILE: &str = "/proc/self/mem";
const MEMORY_FILE_AT: usize = CODE + 0x200;
/// The address of the arguments of `capset`, `PR_SET_MM_MAP` and `open`, in the same page.
const ARGUMENTS_AT: usize = CODE + 0x800;
/// The offsets in the same page of a byte that is zero, and of one that is never read.
const ZERO_AT: u64 = 0x100;
const NOTHING_AT: u64 = 0x180;

/// The descriptor of the first file in the child. The others follow it.
pub(crate) const FIRST_FD: c_int = 32;

/// The process. Only the thread that started it can trace it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: pid_t,
    /// The registers when it stopped first, of which segments and flags are kept.
    registers: user_regs_struct,
    maps: File,
    /// The last text of its maps file.
    buffer: Vec<u8>,
    thread: PhantomData<*const ()>,
}

/// A mapping of the kernel's own pages, which every process has: `[vdso]`, `[vvar]`.
#[derive(Clone, Debug)]
pub struct Special {
    /// Its addresses.
    pub range: Range<usize>,
    /// What `smaps` says of it.
    pub flags: VmFlags,
    /// Its name.
    pub name: Arc<str>,
    /// The pages that are not there: a touch is SIGBUS.
    pub absent: BTreeSet<u64>,
}

/// The state of a process before its first call.
#[derive(Clone, Debug)]
pub struct InitialState {
    /// The kernel's own mappings in it.
    pub special: Vec<Special>,
    /// The layout of its address space.
    pub layout: Layout,
    /// The lowest address that is chosen.
    pub lowest_choice: usize,
    /// The lowest address that it may map.
    pub mmap_min_addr: usize,
    /// Its limits.
    pub limits: Limits,
    /// The hard limits.
    pub hard: Limits,
    /// Whether addresses are random.
    pub randomized: bool,
    /// Whether the kernel marks mappings with guard pages.
    pub marks_guards: bool,
    /// Its capabilities, as a set of bits.
    capabilities: u64,
}

/// The capability to lock memory without a limit.
pub(crate) const CAP_IPC_LOCK: u32 = Capability::Lock.number();
/// The capability to map low addresses.
pub(crate) const CAP_SYS_RAWIO: u32 = Capability::RawIo.number();
/// The capability that `MADV_HWPOISON` needs, among many others.
pub(crate) const CAP_SYS_ADMIN: u32 = 21;
/// The capability to open what is mapped.
pub(crate) const CAP_CHECKPOINT_RESTORE: u32 = 40;
/// The capability to set the addresses of a program's parts.
pub(crate) const CAP_SYS_RESOURCE: u32 = Capability::Resource.number();

impl InitialState {
    /// Defaults for tests that need no process.
    #[cfg(test)]
    pub(crate) fn unborn() -> Self {
        Self {
            special: Vec::new(),
            layout: Layout::default(),
            lowest_choice: Config::default().lowest_choice,
            mmap_min_addr: Config::default().mmap_min_addr,
            limits: Limits::default(),
            hard: Limits { locked: u64::MAX, stack: u64::MAX, ..Limits::default() },
            randomized: false,
            marks_guards: true,
            capabilities: 0,
        }
    }

    /// The same process with a capability more.
    #[cfg(test)]
    pub(crate) fn with(self, capability: u32) -> Self {
        Self { capabilities: self.capabilities | 1 << capability, ..self }
    }

    /// Whether it has the capability.
    pub fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 != 0
    }
}

/// The limits of stack and locked memory, in bytes, if the hard limits allow them. The start of the
/// search for gaps depends on the former.
const EIGHT_MIB: u64 = 8 << 20;

/// The kernel's own mappings of a process.
fn special_of(mm: &Mm<NoBacking, StdPlatform>) -> io::Result<Vec<Special>> {
    let mut special = Vec::new();
    mm.for_each(|range, vma| {
        if let Source::Special(name) = &vma.source {
            let (name, absent) = (Arc::clone(name), BTreeSet::new());
            special.push(Special { range, flags: vma.flags, name, absent });
        }
    })
    .map_err(io::Error::other)?;
    Ok(special)
}

/// Whether it is an address for the processor, which sign-extends 48 bits.
fn is_canonical(addr: usize) -> bool {
    matches!(addr >> 47, 0 | 0x1_ffff)
}

impl Calls for Child {
    fn call(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<i64> {
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

    fn smaps(&self) -> io::Result<String> {
        self.file("smaps")
    }
}

impl Child {
    /// Starts a process with `files` as its descriptors, and empties its memory.
    pub(crate) fn spawn<'f>(
        files: impl Iterator<Item = &'f OwnedFd>,
        privileges: Privileges,
    ) -> io::Result<(Self, InitialState)> {
        let mut descriptors: Vec<c_int> = files.map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("/proc/self/exe");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: `prepare` makes only system calls, which a fork's child may do.
        unsafe { command.pre_exec(move || prepare(&mut descriptors, privileges)) };
        // The tracer waits for the process, not the handle.
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
        let initial = child.empty()?;
        Ok((child, initial))
    }

    /// Unmaps everything but a page of instructions and the kernel's own pages.
    fn empty(&mut self) -> io::Result<InitialState> {
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEFORK;
        self.request(libc::PTRACE_SETOPTIONS, 0, usize::try_from(options).unwrap_or(0))?;
        self.registers = self.read_registers()?;
        let personality = fs::read_to_string(format!("/proc/{}/personality", self.pid))?;
        let no_random = u64::try_from(libc::ADDR_NO_RANDOMIZE).unwrap_or(0);
        let personality = u64::from_str_radix(personality.trim(), 16).unwrap_or(0);
        let pid = self.pid.cast_unsigned();
        let told = Mm::of_process(pid, NoBacking, Config::default());
        let (mm, _) = told.map_err(io::Error::other)?;
        let told = mm.config().layout;
        let mut special = special_of(&mm)?;

        // The program's first instruction is overwritten with a system call.
        let entry = usize::try_from(self.registers.rip).map_err(io::Error::other)?;
        self.poke(entry, INSTRUCTIONS)?;
        let flags = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS | abi::MAP_FIXED_NOREPLACE;
        let all = abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC;
        let page = abi::PAGE as u64;
        let code = CODE as u64;
        self.must(libc::SYS_mmap, [code, page, all, flags, u64::MAX, 0])?;
        self.poke(CODE, INSTRUCTIONS)?;
        let names = NAMES.iter().zip((0..).map(name_at));
        for (text, start) in names.chain([(&MEMORY_FILE, MEMORY_FILE_AT)]) {
            self.poke_bytes(start, text.as_bytes())?;
        }
        self.registers.rip = code;
        let not_writable = abi::PROT_READ | abi::PROT_EXEC;
        self.must(libc::SYS_mprotect, [code, page, not_writable, 0, 0, 0])?;
        let layout = Layout::default();
        let starts = special.iter().map(|kept| kept.range.start).chain([layout.task_size]);
        let ends = [CODE + abi::PAGE].into_iter().chain(special.iter().map(|kept| kept.range.end));
        for (from, to) in ends.zip(starts).filter(|(from, to)| from < to) {
            let len = (to - from) as u64;
            self.must(libc::SYS_munmap, [from as u64, len, 0, 0, 0, 0])?;
        }
        self.find_absent(&mut special)?;

        let Probed { top, lowest_choice, brk, mmap_min_addr, marks_guards } = probe(self)?;
        let layout = Layout {
            mmap_base: top + abi::PAGE,
            mmap_legacy_base: layout.mmap_legacy_base,
            task_size: layout.task_size,
            stack_guard_gap: layout.stack_guard_gap,
            brk,
            ..told
        };
        let [address_space, data, locked, stack] =
            [libc::RLIMIT_AS, libc::RLIMIT_DATA, libc::RLIMIT_MEMLOCK, libc::RLIMIT_STACK]
                .map(|limit| read_limit(self.pid, limit));
        let (address_space, data, locked, stack) = (address_space?, data?, locked?, stack?);
        let limits = Limits {
            address_space: address_space.rlim_cur,
            data: data.rlim_cur,
            data_max: data.rlim_max,
            locked: locked.rlim_cur,
            stack: stack.rlim_cur,
        };
        let hard = Limits {
            address_space: address_space.rlim_max,
            data: data.rlim_max,
            data_max: data.rlim_max,
            locked: locked.rlim_max,
            stack: stack.rlim_max,
        };
        let [_, _, capabilities] = self.capabilities()?;
        let randomized = personality & no_random == 0;
        Ok(InitialState {
            special,
            layout,
            lowest_choice,
            mmap_min_addr,
            limits,
            hard,
            randomized,
            marks_guards,
            capabilities,
        })
    }

    /// Touches the kernel's own pages, to know which of them are not there.
    fn find_absent(&mut self, special: &mut [Special]) -> io::Result<()> {
        for Special { range, absent, .. } in special {
            for (page, number) in range.clone().step_by(abi::PAGE).zip(0..) {
                if self.touch(page, Access::Read)? == Err(Signal::Bus) {
                    absent.insert(number);
                }
            }
        }
        Ok(())
    }

    /// Touches a byte.
    pub(crate) fn touch(&mut self, addr: usize, access: Access) -> io::Result<Result<(), Signal>> {
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
            // For a single step the tracer would read the instruction first.
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
        /// `SI_KERNEL`: the processor gives no address.
        const KERNEL: c_int = 0x80;
        Ok(match (signal, self.traced().signal_code()?) {
            (libc::SIGSEGV, 1) => Err(Signal::NotMapped),
            (libc::SIGSEGV, 2) => Err(Signal::NotAllowed),
            // The instruction was fetched and did nothing, if there can be one at that address.
            (libc::SIGSEGV, KERNEL) if access == Access::Execute && is_canonical(addr) => Ok(()),
            (libc::SIGSEGV, KERNEL) => Err(Signal::NotAnAddress),
            (libc::SIGBUS, _) => Err(Signal::Bus),
            _ => return Err(io::Error::other(format!("unexpected signal {signal}"))),
        })
    }

    /// Has the process read or write a byte of its own, whatever the mapping allows. Returns the
    /// result of that system call.
    pub(crate) fn force(&mut self, addr: usize, access: Access) -> io::Result<i64> {
        let (path, byte) = (MEMORY_FILE_AT as u64, CODE as u64);
        let read_write = u64::try_from(libc::O_RDWR).unwrap_or(0);
        let file = self.must(libc::SYS_open, [path, read_write, 0, 0, 0, 0])?;
        // `pread` and `pwrite` refuse addresses that look negative.
        self.call(libc::SYS_lseek, [file, addr as u64, 0, 0, 0, 0])?;
        let done = match access {
            Access::Write => self.call(libc::SYS_write, [file, byte + ZERO_AT, 1, 0, 0, 0])?,
            Access::Read | Access::Execute => {
                let to = byte + NOTHING_AT;
                let read = self.call(libc::SYS_read, [file, to, 1, 0, 0, 0])?;
                // The byte was read and could not be copied: the page of instructions is read-only.
                if read == -i64::from(libc::EFAULT) { 1 } else { read }
            }
        };
        self.must(libc::SYS_close, [file, 0, 0, 0, 0, 0])?;
        Ok(done)
    }

    /// Its capabilities: those it can hand on, those it may have, those it has.
    fn capabilities(&self) -> io::Result<[u64; 3]> {
        let status = self.file("status")?;
        let mut sets = [0; 3];
        for (set, name) in sets.iter_mut().zip(["CapInh:", "CapPrm:", "CapEff:"]) {
            let digits = status.lines().find_map(|line| line.strip_prefix(name));
            let digits = digits.unwrap_or_default().trim();
            *set = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        }
        Ok(sets)
    }

    /// Has the process drop a capability, or take it up again. Returns the result of that system
    /// call.
    pub(crate) fn set_capability(&mut self, capability: u32, has: bool) -> io::Result<i64> {
        /// `_LINUX_CAPABILITY_VERSION_3`, for this thread.
        const HEADER: u64 = 0x2008_0522;
        let [inheritable, permitted, effective] = self.capabilities()?;
        let bit = 1 << capability;
        let effective = if has { effective | bit } else { effective & !bit };
        // Twice, for the lower and the upper halves, 32 bits of each set.
        let half = |set: u64, upper: bool| if upper { set >> 32 } else { set & 0xffff_ffff };
        let first = |upper| half(effective, upper) | half(permitted, upper) << 32;
        let [low, high] = [false, true].map(|upper| half(inheritable, upper));
        let words = [HEADER, first(false), low | first(true) << 32, first(true) >> 32 | high << 32];
        for (word, at) in words.into_iter().zip((ARGUMENTS_AT..).step_by(8)) {
            self.poke(at, word)?;
        }
        let header = ARGUMENTS_AT as u64;
        self.call(libc::SYS_capset, [header, header + 8, 0, 0, 0, 0])
    }

    /// Sets all addresses of its program's parts to what they are, but for the one that the option
    /// of `prctl(PR_SET_MM)` is about. Returns the result of that system call.
    pub(crate) fn set_addresses(&mut self, option: i32, addr: usize) -> io::Result<i64> {
        /// `PR_SET_MM` and `PR_SET_MM_MAP`.
        const SET: [u64; 2] = [35, 14];
        /// In the order of `struct prctl_mm_map`: the options, and the fields of the stat file.
        const PARTS: [(i32, usize); 11] = [
            (abi::PR_SET_MM_START_CODE, 26),
            (abi::PR_SET_MM_END_CODE, 27),
            (abi::PR_SET_MM_START_DATA, 45),
            (abi::PR_SET_MM_END_DATA, 46),
            (abi::PR_SET_MM_START_BRK, 47),
            (abi::PR_SET_MM_BRK, 0),
            (abi::PR_SET_MM_START_STACK, 28),
            (abi::PR_SET_MM_ARG_START, 48),
            (abi::PR_SET_MM_ARG_END, 49),
            (abi::PR_SET_MM_ENV_START, 50),
            (abi::PR_SET_MM_ENV_END, 51),
        ];
        let brk = self.must(libc::SYS_brk, [0; 6])?;
        let stat = self.file("stat")?;
        // The name, in parentheses, is the second of the fields.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
        let words = PARTS.map(|(part, field)| match field {
            _ if part == option => addr as u64,
            0 => brk,
            field => fields.get(field - 3).copied().unwrap_or(0),
        });
        // No auxiliary vector, and no file.
        let rest = [0, u64::from(u32::MAX) << 32];
        for (word, at) in words.iter().chain(&rest).zip((ARGUMENTS_AT..).step_by(8)) {
            self.poke(at, *word)?;
        }
        let size = 8 * (words.len() + rest.len()) as u64;
        self.call(libc::SYS_prctl, [SET[0], SET[1], ARGUMENTS_AT as u64, size, 0, 0])
    }

    /// Where the mapping is in the folder of open files of mappings, if an address is in one of
    /// memory that has an inode.
    pub(crate) fn map_file(&mut self, at: usize) -> io::Result<Option<String>> {
        let maps = String::from_utf8_lossy(self.maps()?).into_owned();
        let hex = |digits| usize::from_str_radix(digits, 16).map_err(io::Error::other);
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap_or_default();
            let (start, end) = range.split_once('-').unwrap_or_default();
            if (hex(start)?..hex(end)?).contains(&at) {
                let is_memory = line.contains(" /memfd:") || line.ends_with(NAMELESS);
                // The folder has numbers without zeros in front of them.
                let name = format!("{:x}-{:x}", hex(start)?, hex(end)?);
                return Ok(is_memory.then_some(name));
            }
        }
        Ok(None)
    }

    /// The path of the mapping of that name, for another process.
    pub(crate) fn path_of_map_file(&self, name: &str) -> String {
        format!("/proc/{}/map_files/{name}", self.pid)
    }

    /// Has the process open it, as the descriptor with this number. Returns 0 or the negated error
    /// number.
    pub(crate) fn open_map_file(&mut self, name: &str, number: c_int) -> io::Result<i64> {
        let path = format!("/proc/self/map_files/{name}");
        self.poke_bytes(ARGUMENTS_AT, path.as_bytes())?;
        // What ends it.
        self.poke(ARGUMENTS_AT + path.len(), 0)?;
        let read_write = u64::try_from(libc::O_RDWR).unwrap_or(0);
        let file = self.call(libc::SYS_open, [ARGUMENTS_AT as u64, read_write, 0, 0, 0, 0])?;
        let Ok(opened) = u64::try_from(file) else { return Ok(file) };
        let number = u64::try_from(number).unwrap_or(0);
        self.must(libc::SYS_dup2, [opened, number, 0, 0, 0, 0])?;
        self.must(libc::SYS_close, [opened, 0, 0, 0, 0, 0])?;
        Ok(0)
    }

    /// Forks, and returns the child, which is traced and stopped, or the negated error number.
    pub(crate) fn fork(&mut self) -> io::Result<Result<Self, i64>> {
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
        let number = self.traced().message()?;
        let pid = pid_t::try_from(number).map_err(io::Error::other)?;
        let child = Self {
            pid,
            registers: self.registers,
            maps: File::open(format!("/proc/{pid}/maps"))?,
            buffer: vec![0; self.buffer.len()],
            thread: PhantomData,
        };
        child.wait()?;
        // The parent is still in the call.
        self.request(libc::PTRACE_SINGLESTEP, 0, 0)?;
        self.wait()?;
        Ok(Ok(child))
    }

    /// Returns a limit, soft and hard.
    pub(crate) fn limit(&self, resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
        read_limit(self.pid, resource)
    }

    /// Sets a limit.
    pub(crate) fn set_limit(
        &self,
        resource: libc::__rlimit_resource_t,
        new: libc::rlimit,
    ) -> io::Result<()> {
        // SAFETY: reads from a limit that is there.
        let set =
            unsafe { libc::prlimit(self.pid, resource, &raw const new, std::ptr::null_mut()) };
        check(c_long::from(set)).map(drop)
    }

    /// Reads its maps file.
    pub(crate) fn maps(&mut self) -> io::Result<&[u8]> {
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

    /// Reads another of its files in `/proc`.
    pub(crate) fn file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid))
    }

    fn traced(&self) -> Traced {
        Traced(self.pid)
    }

    fn step(&self, registers: user_regs_struct) -> io::Result<()> {
        self.traced().set_registers(&registers)?;
        self.request(libc::PTRACE_SINGLESTEP, 0, 0)
    }

    fn go_on(&self, registers: user_regs_struct) -> io::Result<()> {
        self.traced().set_registers(&registers)?;
        self.request(libc::PTRACE_CONT, 0, 0)
    }

    fn read_registers(&self) -> io::Result<user_regs_struct> {
        self.traced().registers()
    }

    /// Writes a word, whatever the mapping allows.
    fn poke(&self, addr: usize, word: u64) -> io::Result<()> {
        self.request(libc::PTRACE_POKEDATA, addr, usize::try_from(word).unwrap_or(0))
    }

    /// Writes bytes, and zeros up to a whole word.
    fn poke_bytes(&self, start: usize, bytes: &[u8]) -> io::Result<()> {
        for (part, at) in bytes.chunks(8).zip((start..).step_by(8)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.poke(at, u64::from_le_bytes(word))?;
        }
        Ok(())
    }

    fn request(&self, request: libc::c_uint, addr: usize, data: usize) -> io::Result<()> {
        self.traced().request(request, addr, data)
    }

    /// Waits until it has stopped, and returns the signal that stopped it.
    fn wait(&self) -> io::Result<c_int> {
        self.wait_for_status().map(|status| libc::WSTOPSIG(status))
    }

    /// Waits until it has stopped, and returns the status with the signal and the event.
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

/// Reads a limit of a process, where 0 is this one.
pub(crate) fn read_limit(
    pid: pid_t,
    resource: libc::__rlimit_resource_t,
) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a limit that is there.
    let read = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut limit) };
    check(c_long::from(read))?;
    Ok(limit)
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: the process is a child of this one that only this value waits for, so the number
        // is its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above; the kernel writes a status to where there is one.
        unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
    }
}

/// The privileges that the process keeps, if this one has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Privileges {
    /// None, so that limits hold.
    #[default]
    None,
    /// `CAP_IPC_LOCK` and `CAP_SYS_RAWIO`, but not `CAP_SYS_ADMIN`, which would damage real memory.
    Kept,
}

/// The address of the name with this number.
pub(crate) fn name_at(number: usize) -> usize {
    NAMES_AT + number * NAME_SIZE
}

/// Runs in the child before it becomes another program: it gets its descriptors, drops privileges,
/// switches off random addresses and huge pages, and is traced from now on.
fn prepare(files: &mut [c_int], privileges: Privileges) -> io::Result<()> {
    let numbers = FIRST_FD..FIRST_FD + files.len() as c_int;
    // Where this process has many open, the number of one may be that of another's copy.
    for file in files.iter_mut().filter(|file| numbers.contains(*file)) {
        // SAFETY: takes numbers; the copy is closed at the exec.
        let copy = unsafe { libc::fcntl(*file, libc::F_DUPFD_CLOEXEC, numbers.end) };
        check(c_long::from(copy))?;
        *file = copy;
    }
    for (file, number) in files.iter().zip(FIRST_FD..) {
        // SAFETY: descriptors of this process; the copy stays open across the exec.
        check(c_long::from(unsafe { libc::dup2(*file, number) }))?;
    }
    let dropped: &[u32] = match privileges {
        Privileges::None => &[CAP_IPC_LOCK, CAP_SYS_RAWIO, CAP_SYS_ADMIN],
        Privileges::Kept => &[CAP_SYS_ADMIN],
    };
    for &capability in dropped {
        // It fails without privileges, and then there are none to drop.
        // SAFETY: changes this process's capabilities only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    }
    for resource in [libc::RLIMIT_STACK, libc::RLIMIT_MEMLOCK] {
        let old = read_limit(0, resource)?;
        let new = libc::rlimit { rlim_cur: EIGHT_MIB.min(old.rlim_max), ..old };
        // SAFETY: reads from a limit that is there.
        check(c_long::from(unsafe { libc::setrlimit(resource, &raw const new) }))?;
    }
    // Where huge pages are decides which pages become anonymous, and is not in the map.
    // SAFETY: changes this process's way of making pages only.
    check(c_long::from(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }))?;
    let no_random = libc::c_ulong::try_from(libc::ADDR_NO_RANDOMIZE).unwrap_or(0);
    // Where it is refused, addresses are random.
    // SAFETY: changes this process's execution domain only.
    unsafe { libc::personality(no_random) };
    // SAFETY: takes no pointer.
    check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).map(drop)
}
