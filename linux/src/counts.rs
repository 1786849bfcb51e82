//! What is counted, and what the counts may not exceed.

use crate::abi::{PAGE, pages};
use crate::config::{Config, Limits};
use crate::flags::VmFlags;

/// How many pages are mapped, of which kind.
///
/// ```
/// use pervma_linux::{Config, Mm, NoBacking, abi};
///
/// let mm = Mm::new(NoBacking, Config::default());
/// mm.mmap(0, 8192, abi::PROT_WRITE, abi::MAP_PRIVATE | abi::MAP_ANONYMOUS, None, 0)?;
/// assert_eq!((mm.counts().total, mm.counts().data), (2, 2));
/// # Ok::<(), pervma_linux::Errno>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All (`VmSize`).
    #[doc(alias = "total_vm")]
    pub total: usize,
    /// Private and writable (`VmData`).
    #[doc(alias = "data_vm")]
    pub data: usize,
    /// Growing downwards (`VmStk`).
    #[doc(alias = "stack_vm")]
    pub stack: usize,
    /// Executable and not writable (`VmExe` and `VmLib`).
    #[doc(alias = "exec_vm")]
    pub exec: usize,
    /// Locked (`VmLck`). As in Linux, `MREMAP_DONTUNMAP` of locked memory counts it twice.
    #[doc(alias = "locked_vm")]
    pub locked: usize,
}

impl Counts {
    /// `pages` with these flags came to be.
    #[doc(alias = "vm_stat_account")]
    pub(crate) fn add(&mut self, flags: VmFlags, pages: usize) {
        self.total = self.total.wrapping_add(pages);
        if let Some(kind) = self.kind(flags) {
            *kind = kind.wrapping_add(pages);
        }
    }

    /// `pages` with these flags went.
    pub(crate) fn remove(&mut self, flags: VmFlags, pages: usize) {
        self.add(flags, pages.wrapping_neg());
    }

    fn kind(&mut self, flags: VmFlags) -> Option<&mut usize> {
        if flags.is_exec() {
            Some(&mut self.exec)
        } else if flags.is_stack() {
            Some(&mut self.stack)
        } else if flags.is_data() {
            Some(&mut self.data)
        } else {
            None
        }
    }

    /// Whether `pages` more with these flags stay within RLIMIT_AS and RLIMIT_DATA. The number may be
    /// negative, as a wrapped one.
    #[doc(alias = "may_expand_vm")]
    pub(crate) fn may_expand(&self, limits: &Limits, flags: VmFlags, pages: usize) -> bool {
        // For the sake of one program, no data at all means as much as can be allowed.
        let data = if limits.data == 0 { limits.data_max } else { limits.data };
        self.total.wrapping_add(pages) <= in_pages(limits.address_space)
            && (!flags.is_data() || self.data.wrapping_add(pages) <= in_pages(data))
    }

    /// Whether `bytes` more that are locked, if the flags say so, stay within RLIMIT_MEMLOCK.
    #[doc(alias = "mlock_future_ok")]
    pub(crate) fn may_lock(
        &self,
        config: &Config,
        limits: &Limits,
        flags: VmFlags,
        bytes: usize,
    ) -> bool {
        !flags.has(VmFlags::LOCKED)
            || config.may_lock
            || self.locked.wrapping_add(pages(bytes)) <= in_pages(limits.locked)
    }
}

/// A limit in bytes as whole pages.
pub(crate) fn in_pages(bytes: u64) -> usize {
    usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX)
}
