//! Steps, which are made on both sides.
#![expect(missing_docs, reason = "the fields are the arguments of the calls, by their usual names")]

use std::fmt;

use pervma_linux::Access;

/// A step: a system call, a touch of memory, or a change of the process or of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `mmap` of the file with this number, or of none.
    Mmap { addr: usize, len: usize, prot: u64, flags: u64, file: Option<usize>, offset: u64 },
    /// `munmap`.
    Munmap { addr: usize, len: usize },
    /// `mprotect`.
    Mprotect { addr: usize, len: usize, prot: u64 },
    /// `pkey_mprotect`.
    PkeyMprotect { addr: usize, len: usize, prot: u64, key: i32 },
    /// `mremap`.
    Mremap { addr: usize, old_len: usize, new_len: usize, flags: u64, new_addr: usize },
    /// `madvise`.
    Madvise { addr: usize, len: usize, advice: i32 },
    /// `mlock`.
    Mlock { addr: usize, len: usize },
    /// `mlock2`.
    Mlock2 { addr: usize, len: usize, flags: i32 },
    /// `munlock`.
    Munlock { addr: usize, len: usize },
    /// `mlockall`.
    Mlockall { flags: i32 },
    /// `munlockall`.
    Munlockall,
    /// `brk`.
    Brk { addr: usize },
    /// `mseal`.
    Mseal { addr: usize, len: usize, flags: u64 },
    /// `msync`.
    Msync { addr: usize, len: usize, flags: i32 },
    /// `mincore`.
    Mincore { addr: usize, len: usize, vector: usize },
    /// `prctl(PR_SET_VMA_ANON_NAME)` with one of [`NAMES`], or with none.
    Name { addr: usize, len: usize, name: Option<usize> },
    /// The process touches a byte.
    Touch { addr: usize, access: Access },
    /// The process reads or writes a byte through `/proc/self/mem`, whatever the mapping allows.
    Force { addr: usize, access: Access },
    /// `fork`: the child takes the place of the process, or is looked at and ends.
    Fork { child_goes_on: bool },
    /// `setrlimit`.
    Limit { which: Which, bytes: u64 },
    /// `capset`: the process drops a capability, or takes one up again that it had.
    Capability { which: Capability, has: bool },
    /// `prctl(PR_SET_MM)` with this option, or with `PR_SET_MM_MAP` and what that option sets.
    SetAddress { option: i32, addr: usize, by_map: bool },
    /// The process is taken over as it is: the model begins anew with its mappings.
    Adopt,
    /// Memory that is mapped at an address becomes an open file, by `/proc/self/map_files`: the one
    /// with the last number. Nothing happens where no memory with an inode is mapped.
    Open { at: usize },
    /// `fcntl(F_ADD_SEALS)` of a file, by another process.
    AddSeals { file: usize, seals: i32 },
    /// `ftruncate` of a file to so many pages, by another process.
    Truncate { file: usize, pages: usize },
    /// `rename` of a file to the name with this number, by another process.
    Rename { file: usize, name: usize },
    /// `unlink` of a file, by another process.
    Unlink { file: usize },
}

/// Names for anonymous memory. The last ones are not valid.
pub const NAMES: [&str; 7] = [
    "name",
    "a b",
    "",
    "1234567890123456789012345678901234567890123456789012345678901234567890123456789",
    "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
    "[heap]",
    "a\u{1}b",
];

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `RLIMIT_AS`.
    AddressSpace,
    /// `RLIMIT_DATA`.
    Data,
    /// The hard limit of `RLIMIT_DATA`, to which the soft one is lowered as well.
    DataMax,
    /// `RLIMIT_MEMLOCK`.
    Locked,
    /// `RLIMIT_STACK`.
    Stack,
}

/// A capability that calls ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_IPC_LOCK`.
    Lock,
    /// `CAP_SYS_RAWIO`.
    RawIo,
    /// `CAP_SYS_RESOURCE`.
    Resource,
}

impl Capability {
    /// Its number in sets of capabilities.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Lock => 14,
            Self::RawIo => 17,
            Self::Resource => 24,
        }
    }
}

impl Op {
    /// The number of kinds of steps.
    pub const KINDS: usize = 28;

    /// Whether it changes the process or a file, and no mapping.
    pub(crate) fn changes_no_mapping(&self) -> bool {
        matches!(
            self,
            Self::Limit { .. }
                | Self::Capability { .. }
                | Self::SetAddress { .. }
                | Self::AddSeals { .. }
                | Self::Truncate { .. }
                | Self::Rename { .. }
                | Self::Unlink { .. }
        )
    }

    /// Returns the name of the call.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mmap { .. } => "mmap",
            Self::Munmap { .. } => "munmap",
            Self::Mprotect { .. } => "mprotect",
            Self::PkeyMprotect { .. } => "pkey_mprotect",
            Self::Mremap { .. } => "mremap",
            Self::Madvise { .. } => "madvise",
            Self::Mlock { .. } => "mlock",
            Self::Mlock2 { .. } => "mlock2",
            Self::Munlock { .. } => "munlock",
            Self::Mlockall { .. } => "mlockall",
            Self::Munlockall => "munlockall",
            Self::Brk { .. } => "brk",
            Self::Mseal { .. } => "mseal",
            Self::Msync { .. } => "msync",
            Self::Mincore { .. } => "mincore",
            Self::Name { .. } => "prctl",
            Self::Touch { .. } => "touch",
            Self::Force { .. } => "/proc/self/mem",
            Self::Fork { .. } => "fork",
            Self::Limit { .. } => "setrlimit",
            Self::Capability { .. } => "capset",
            Self::SetAddress { .. } => "prctl(SET_MM)",
            Self::Adopt => "(adopt)",
            Self::Open { .. } => "open",
            Self::AddSeals { .. } => "fcntl",
            Self::Truncate { .. } => "ftruncate",
            Self::Rename { .. } => "rename",
            Self::Unlink { .. } => "unlink",
        }
    }
}

/// Shows it as an expression of Rust, with addresses in hexadecimal.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |f: &mut fmt::Formatter<'_>, name: &str, addr: &usize, len: &usize| {
            write!(f, "Op::{name} {{ addr: {addr:#x}, len: {len:#x}")
        };
        match self {
            Self::Mmap { addr, len, prot, flags, file, offset } => {
                range(f, "Mmap", addr, len)?;
                write!(f, ", prot: {prot:#x}, flags: {flags:#x}, file: {file:?}, ")?;
                write!(f, "offset: {offset:#x} }}")
            }
            Self::Munmap { addr, len } => {
                range(f, "Munmap", addr, len)?;
                f.write_str(" }")
            }
            Self::Mprotect { addr, len, prot } => {
                range(f, "Mprotect", addr, len)?;
                write!(f, ", prot: {prot:#x} }}")
            }
            Self::PkeyMprotect { addr, len, prot, key } => {
                range(f, "PkeyMprotect", addr, len)?;
                write!(f, ", prot: {prot:#x}, key: {key} }}")
            }
            Self::Mremap { addr, old_len, new_len, flags, new_addr } => {
                write!(f, "Op::Mremap {{ addr: {addr:#x}, old_len: {old_len:#x}, ")?;
                write!(f, "new_len: {new_len:#x}, flags: {flags:#x}, new_addr: {new_addr:#x} }}")
            }
            Self::Madvise { addr, len, advice } => {
                range(f, "Madvise", addr, len)?;
                write!(f, ", advice: {advice} }}")
            }
            Self::Mlock { addr, len } => {
                range(f, "Mlock", addr, len)?;
                f.write_str(" }")
            }
            Self::Mlock2 { addr, len, flags } => {
                range(f, "Mlock2", addr, len)?;
                write!(f, ", flags: {flags} }}")
            }
            Self::Munlock { addr, len } => {
                range(f, "Munlock", addr, len)?;
                f.write_str(" }")
            }
            Self::Mlockall { flags } => write!(f, "Op::Mlockall {{ flags: {flags} }}"),
            Self::Munlockall => f.write_str("Op::Munlockall"),
            Self::Brk { addr } => write!(f, "Op::Brk {{ addr: {addr:#x} }}"),
            Self::Mseal { addr, len, flags } => {
                range(f, "Mseal", addr, len)?;
                write!(f, ", flags: {flags} }}")
            }
            Self::Msync { addr, len, flags } => {
                range(f, "Msync", addr, len)?;
                write!(f, ", flags: {flags} }}")
            }
            Self::Mincore { addr, len, vector } => {
                range(f, "Mincore", addr, len)?;
                write!(f, ", vector: {vector:#x} }}")
            }
            Self::Name { addr, len, name } => {
                range(f, "Name", addr, len)?;
                write!(f, ", name: {name:?} }}")
            }
            Self::Touch { addr, access } => {
                write!(f, "Op::Touch {{ addr: {addr:#x}, access: Access::{access:?} }}")
            }
            Self::Force { addr, access } => {
                write!(f, "Op::Force {{ addr: {addr:#x}, access: Access::{access:?} }}")
            }
            Self::Fork { child_goes_on } => {
                write!(f, "Op::Fork {{ child_goes_on: {child_goes_on} }}")
            }
            Self::Limit { which, bytes } => {
                write!(f, "Op::Limit {{ which: Which::{which:?}, bytes: {bytes:#x} }}")
            }
            Self::Capability { which, has } => {
                write!(f, "Op::Capability {{ which: Capability::{which:?}, has: {has} }}")
            }
            Self::SetAddress { option, addr, by_map } => {
                write!(
                    f,
                    "Op::SetAddress {{ option: {option}, addr: {addr:#x}, by_map: {by_map} }}"
                )
            }
            Self::Adopt => f.write_str("Op::Adopt"),
            Self::Open { at } => write!(f, "Op::Open {{ at: {at:#x} }}"),
            Self::AddSeals { file, seals } => {
                write!(f, "Op::AddSeals {{ file: {file}, seals: {seals} }}")
            }
            Self::Truncate { file, pages } => {
                write!(f, "Op::Truncate {{ file: {file}, pages: {pages} }}")
            }
            Self::Rename { file, name } => {
                write!(f, "Op::Rename {{ file: {file}, name: {name} }}")
            }
            Self::Unlink { file } => write!(f, "Op::Unlink {{ file: {file} }}"),
        }
    }
}
