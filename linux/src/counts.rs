//! Counts of mapped pages, and the limits that they may not exceed.

use crate::abi::{PAGE, pages};
use crate::config::{Config, Limits};
use crate::flags::VmFlags;

/// The numbers of mapped pages, by their kind.
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
    /// All pages (`VmSize`).
    #[doc(alias = "total_vm")]
    pub total: usize,
    /// Private and writable pages (`VmData`).
    #[doc(alias = "data_vm")]
    pub data: usize,
    /// Pages of mappings that grow downwards (`VmStk`).
    #[doc(alias = "stack_vm")]
    pub stack: usize,
    /// Executable pages that are not writable (`VmExe` and `VmLib`).
    #[doc(alias = "exec_vm")]
    pub exec: usize,
    /// Locked pages (`VmLck`). As in Linux, `MREMAP_DONTUNMAP` of locked memory counts it twice,
    /// and 8 TiB or more that are locked or unlocked at a time are counted wrong.
    #[doc(alias = "locked_vm")]
    pub locked: usize,
}

impl Counts {
    /// Counts `pages` more with these flags.
    #[doc(alias = "vm_stat_account")]
    pub(crate) fn add(&mut self, flags: VmFlags, pages: usize) {
        self.total = self.total.wrapping_add(pages);
        if let Some(kind) = self.kind(flags) {
            *kind = kind.wrapping_add(pages);
        }
    }

    /// Counts `pages` less with these flags.
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

    /// Whether `pages` more with these flags stay within `RLIMIT_AS` and `RLIMIT_DATA`. The number
    /// may be a negative one that has wrapped.
    #[doc(alias = "may_expand_vm")]
    pub(crate) fn may_expand(&self, limits: &Limits, flags: VmFlags, pages: usize) -> bool {
        // Linux takes a limit of 0 for the hard limit, for the sake of one program.
        let data = if limits.data == 0 { limits.data_max } else { limits.data };
        self.total.wrapping_add(pages) <= in_pages(limits.address_space)
            && (!flags.is_data() || self.data.wrapping_add(pages) <= in_pages(data))
    }

    /// Whether `bytes` more, if the flags say that they are locked, stay within `RLIMIT_MEMLOCK`.
    #[doc(alias = "mlock_future_ok")]
    pub(crate) fn may_lock(&self, config: &Config, flags: VmFlags, bytes: usize) -> bool {
        !flags.has(VmFlags::LOCKED)
            || config.may_lock
            || self.locked.wrapping_add(pages(bytes)) <= in_pages(config.limits.locked)
    }
}

/// What unfinished calls may still add; changed in edits only.
#[derive(Clone, Copy, Default)]
pub(crate) struct Promised {
    pub(crate) calls: usize,
    pub(crate) pages: usize,
}

/// The whole pages of a limit in bytes.
pub(crate) fn in_pages(bytes: u64) -> usize {
    usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX)
}
