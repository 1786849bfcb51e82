//! The flags of a VMA.

use core::fmt;
use core::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not};
use core::str::FromStr;

use crate::abi::{PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::errno::Errno;

/// The flags of a VMA: what may be done with it, and how calls treat it.
///
/// ```
/// use pervma_linux::VmFlags;
///
/// let flags = VmFlags::READ | VmFlags::WRITE;
/// assert!(flags.has(VmFlags::WRITE) && !flags.has(VmFlags::EXEC));
/// assert_eq!(flags.to_string(), "rd wr");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[doc(alias = "vm_flags")]
pub struct VmFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal;)*) => {
        impl VmFlags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            /// Each flag with the two letters that `VmFlags:` in `/proc/PID/smaps` has for it, in
            /// that order; nothing for flags that are not shown.
            const NAMES: &'static [(Self, &'static str)] = &[$((Self::$name, $short),)*];
        }
    };
}

flags! {
    /// Reading is allowed.
    READ = 0, "rd";
    /// Writing is allowed.
    WRITE = 1, "wr";
    /// Executing is allowed.
    EXEC = 2, "ex";
    /// Writes go to the file, or to memory that others share.
    SHARED = 3, "sh";
    /// Reading can be allowed.
    MAYREAD = 4, "mr";
    /// Writing can be allowed.
    MAYWRITE = 5, "mw";
    /// Executing can be allowed.
    MAYEXEC = 6, "me";
    /// Mapped as shared, even if the file is open for reading only.
    MAYSHARE = 7, "ms";
    /// It grows towards lower addresses when touched below its start.
    GROWSDOWN = 8, "gd";
    /// Device memory, of pages that the kernel has no records of (`VM_PFNMAP`).
    PFNMAP = 25, "pf";
    /// There may be guard pages in it. This flag keeps nothing from merging, and passes to what it
    /// merges with.
    MAYBE_GUARD = 9, "gu";
    /// Its pages stay in memory.
    LOCKED = 10, "lo";
    /// Device memory (`VM_IO`).
    IO = 26, "io";
    /// Read sequentially.
    SEQ_READ = 11, "sr";
    /// Read at random.
    RAND_READ = 12, "rr";
    /// Not copied by fork.
    DONTCOPY = 13, "dc";
    /// It cannot become longer.
    DONTEXPAND = 27, "de";
    /// Pages are locked when they are touched, not before.
    LOCKONFAULT = 14, "lf";
    /// Counted as committed memory (`vm.overcommit_memory`).
    ACCOUNT = 15, "ac";
    /// Never counted as committed memory.
    NORESERVE = 16, "nr";
    /// Mapped with `MAP_SYNC`.
    SYNC = 17, "sf";
    /// Empty in a fork's child.
    WIPEONFORK = 18, "wf";
    /// Left out of core dumps.
    DONTDUMP = 19, "dd";
    /// Memory of a driver's, of pages of both kinds (`VM_MIXEDMAP`).
    MIXEDMAP = 28, "mm";
    /// Huge pages are wanted.
    HUGEPAGE = 20, "hg";
    /// Huge pages are not wanted.
    NOHUGEPAGE = 21, "nh";
    /// Pages with equal contents may be merged.
    MERGEABLE = 22, "mg";
    /// Pages may be dropped when memory is short.
    DROPPABLE = 23, "dp";
    /// Sealed: it can be neither unmapped, moved, resized nor protected otherwise.
    SEALED = 24, "sl";
}

impl VmFlags {
    /// Reading, writing and executing.
    pub const ACCESS: Self = Self(Self::READ.0 | Self::WRITE.0 | Self::EXEC.0);
    /// The flags that `mlock2` sets and `munlock` clears.
    pub const LOCKED_MASK: Self = Self(Self::LOCKED.0 | Self::LOCKONFAULT.0);
    /// The flags of memory that is not a process's to manage: each keeps a VMA from merging and
    /// from being locked.
    #[doc(alias = "VM_SPECIAL")]
    pub const SPECIAL: Self =
        Self(Self::IO.0 | Self::PFNMAP.0 | Self::DONTEXPAND.0 | Self::MIXEDMAP.0);
    /// The MAY flags of a mapping without a file.
    pub const MAYALL: Self = Self(Self::MAYREAD.0 | Self::MAYWRITE.0 | Self::MAYEXEC.0);

    /// Whether all of `flags` are set.
    ///
    /// ```
    /// use pervma_linux::VmFlags;
    /// assert!(VmFlags::ACCESS.has(VmFlags::EXEC));
    /// ```
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any of `flags` is set.
    ///
    /// ```
    /// use pervma_linux::VmFlags;
    /// assert!(VmFlags::READ.any(VmFlags::ACCESS));
    /// ```
    #[must_use]
    pub const fn any(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// The flags that protection bits stand for.
    pub(crate) fn of_prot(prot: u64) -> Self {
        let mut flags = Self::default();
        for (bit, flag) in
            [(PROT_READ, Self::READ), (PROT_WRITE, Self::WRITE), (PROT_EXEC, Self::EXEC)]
        {
            if prot & bit != 0 {
                flags |= flag;
            }
        }
        flags
    }

    /// Whether an access is allowed whose MAY flag is missing.
    pub(crate) fn exceeds_may(self) -> bool {
        self.0 & !(self.0 >> 4) & Self::ACCESS.0 != 0
    }

    /// Whether it is private and writable: `RLIMIT_DATA` counts such pages.
    pub(crate) fn is_data(self) -> bool {
        self & (Self::WRITE | Self::SHARED | Self::GROWSDOWN) == Self::WRITE
    }

    pub(crate) fn is_stack(self) -> bool {
        self.has(Self::GROWSDOWN)
    }

    pub(crate) fn is_exec(self) -> bool {
        self & (Self::EXEC | Self::WRITE | Self::GROWSDOWN) == Self::EXEC
    }

    /// Whether writes make anonymous pages.
    pub(crate) fn is_private(self) -> bool {
        !self.has(Self::SHARED)
    }
}

impl BitOr for VmFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for VmFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for VmFlags {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitAndAssign for VmFlags {
    fn bitand_assign(&mut self, other: Self) {
        self.0 &= other.0;
    }
}

impl Not for VmFlags {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Display for VmFlags {
    /// As in `/proc/PID/smaps`, without the space at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (_, name) in Self::NAMES.iter().filter(|(flag, _)| self.has(*flag)) {
            write!(f, "{between}{name}")?;
            between = " ";
        }
        Ok(())
    }
}

impl FromStr for VmFlags {
    type Err = Errno;

    /// Reads flags as `/proc/PID/smaps` shows them.
    ///
    /// ```
    /// use pervma_linux::{Errno, VmFlags};
    /// assert_eq!("rd ex ".parse(), Ok(VmFlags::READ | VmFlags::EXEC));
    /// assert_eq!("rd ??".parse::<VmFlags>(), Err(Errno::EINVAL));
    /// ```
    fn from_str(text: &str) -> Result<Self, Errno> {
        text.split_ascii_whitespace().try_fold(Self::default(), |flags, letters| {
            let named = Self::NAMES.iter().find(|(_, name)| *name == letters);
            named.map(|(flag, _)| flags | *flag).ok_or(Errno::EINVAL)
        })
    }
}

impl fmt::Debug for VmFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmFlags({self})")
    }
}
