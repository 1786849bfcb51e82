//! What the results of calls depend on, beside the map: the machine, the process and its limits.

use crate::flags::VmFlags;

/// The layout of the address space. A program has it from its start; the addresses of its parts are
/// moved by [`Mm::set_addresses`](crate::Mm::set_addresses), and the end of the heap by
/// [`Mm::brk`](crate::Mm::brk).
///
/// The default is that of a process without address randomisation.
///
/// ```
/// let layout = pervma_linux::Layout::default();
/// assert!(layout.mmap_base < layout.task_size);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The end of the address space.
    pub task_size: usize,
    /// Gaps are looked for below this address, the highest first.
    pub mmap_base: usize,
    /// The start of the search from below, for which there is no gap below `mmap_base`.
    pub mmap_legacy_base: usize,
    /// Bytes kept free below a mapping that grows downwards.
    pub stack_guard_gap: usize,
    /// The start of the program's instructions. As those of its arguments and environment, the
    /// address is only compared with others of its kind, when one is set.
    pub start_code: usize,
    /// The end of the program's instructions.
    pub end_code: usize,
    /// The start of the program's initialised data, whose size `RLIMIT_DATA` counts with the heap.
    pub start_data: usize,
    /// The end of the program's initialised data.
    pub end_data: usize,
    /// The start of the heap (`brk`).
    pub start_brk: usize,
    /// The end of the heap.
    pub brk: usize,
    /// The initial stack pointer, by which the stack is named when it is shown.
    pub start_stack: usize,
    /// The start of the program's arguments.
    pub arg_start: usize,
    /// The end of the program's arguments.
    pub arg_end: usize,
    /// The start of the program's environment.
    pub env_start: usize,
    /// The end of the program's environment.
    pub env_end: usize,
}

impl Default for Layout {
    fn default() -> Self {
        let (program, stack) = (0x5555_5555_4000, 0x7fff_ffff_e000);
        Self {
            task_size: 0x7fff_ffff_f000,
            mmap_base: 0x7fff_f7ff_f000,
            mmap_legacy_base: 0x2aaa_aaaa_b000,
            stack_guard_gap: 256 * crate::abi::PAGE,
            start_code: program,
            end_code: program + crate::abi::PAGE,
            start_data: program + crate::abi::PAGE,
            end_data: program + crate::abi::PAGE,
            start_brk: 0x5555_5580_0000,
            brk: 0x5555_5580_0000,
            start_stack: stack,
            arg_start: stack,
            arg_end: stack,
            env_start: stack,
            env_end: stack,
        }
    }
}

/// The resource limits that mapping calls look at, in bytes, where `u64::MAX` is none.
///
/// ```
/// assert_eq!(pervma_linux::Limits::default().address_space, u64::MAX);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_AS`.
    pub address_space: u64,
    /// `RLIMIT_DATA`.
    pub data: u64,
    /// The hard limit of `RLIMIT_DATA`, which holds for mappings where the soft one is 0.
    pub data_max: u64,
    /// `RLIMIT_MEMLOCK`.
    pub locked: u64,
    /// `RLIMIT_STACK`.
    pub stack: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let none = u64::MAX;
        Self { address_space: none, data: none, data_max: none, locked: 8 << 20, stack: 8 << 20 }
    }
}

/// The kernel, the machine and the process that calls are made on. What changes of it while the
/// process lives is set by [`Mm::configure`](crate::Mm::configure).
///
/// ```
/// use pervma_linux::{Config, Errno, Mm, NoBacking, abi};
///
/// // All or nothing: here, none of the range is made read-only.
/// let mm = Mm::new(NoBacking, Config { strict: true, ..Config::default() });
/// let addr = mm.mmap(0, 4096, abi::PROT_WRITE, abi::MAP_PRIVATE | abi::MAP_ANONYMOUS, None, 0)?;
/// let hole_behind = mm.mprotect(addr, 8192, abi::PROT_READ);
/// # mm.munmap(addr + 4096, 4096)?;
/// # let hole_behind = mm.mprotect(addr, 8192, abi::PROT_READ);
/// assert_eq!(hole_behind, Err(Errno::ENOMEM));
/// assert!(mm.maps()?.contains("-w-p"));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The layout of the address space.
    pub layout: Layout,
    /// The limits.
    pub limits: Limits,
    /// The lowest address that is ever chosen.
    pub lowest_choice: usize,
    /// The lowest address that may be mapped (`vm.mmap_min_addr`). Security modules may want
    /// choices to be higher.
    pub mmap_min_addr: usize,
    /// The flags of [`LOCKED_MASK`](VmFlags::LOCKED_MASK) that all mappings to come get, after
    /// `mlockall` with `MCL_FUTURE`. A process may have called that before it was taken over:
    /// nothing that it shows says so.
    #[doc(alias = "def_flags")]
    pub future: VmFlags,
    /// How many VMAs there may be (`vm.max_map_count`).
    pub max_map_count: usize,
    /// The most pages that one call may commit: those of the machine and its swap when
    /// `vm.overcommit_memory` is 0, and `usize::MAX` when it is 1.
    pub commit_limit: usize,
    /// Whether the process has `CAP_IPC_LOCK`: there is no limit on locking then.
    pub may_lock: bool,
    /// Whether the process has `CAP_SYS_RAWIO`: it may map below `mmap_min_addr` then.
    pub may_map_low: bool,
    /// Whether the process has `CAP_SYS_ADMIN`: it may use `MADV_HWPOISON` then.
    pub may_poison: bool,
    /// Whether the process has `CAP_SYS_RESOURCE`: it may move the addresses of its parts one by
    /// one then; see [`Mm::set_address`](crate::Mm::set_address).
    pub may_set_addresses: bool,
    /// Whether the kernel knows names of anonymous memory (`CONFIG_ANON_VMA_NAME`).
    pub anon_names: bool,
    /// Whether the kernel was built with huge pages, on or off.
    pub huge_pages: bool,
    /// Whether the kernel knows `MADV_HWPOISON` (`CONFIG_MEMORY_FAILURE`).
    pub memory_failure: bool,
    /// Whether a mapping with guard pages is marked ([`MAYBE_GUARD`](crate::VmFlags::MAYBE_GUARD)),
    /// as since Linux 6.19 and in later releases of 6.18. Before, it got an `anon_vma` instead,
    /// whatever it maps.
    pub marks_guards: bool,
    /// Whether calls are all or nothing: when one fails, mappings, flags and counts are as they
    /// were before. Linux is not like that.
    ///
    /// What the backing did before it refused something stays done (pages are present, advice is
    /// followed). So [`Vma::anon`](crate::Vma::anon) and
    /// [`MAYBE_GUARD`](crate::VmFlags::MAYBE_GUARD), which say what pages there may be, stay as
    /// well. A touch is no call: a stack may have grown for a page that then fails. And the map
    /// is restored only if there is memory to do so.
    pub strict: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            layout: Layout::default(),
            limits: Limits::default(),
            lowest_choice: 0x1_0000,
            mmap_min_addr: 0x1_0000,
            future: VmFlags::default(),
            max_map_count: 65530,
            commit_limit: usize::MAX,
            may_lock: false,
            may_map_low: false,
            may_poison: false,
            may_set_addresses: false,
            anon_names: true,
            huge_pages: true,
            memory_failure: true,
            marks_guards: true,
            strict: false,
        }
    }
}
