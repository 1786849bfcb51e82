//! The kernel's structures and numbers (`linux/userfaultfd.h`), as far as they are used. Headers
//! of distributions lag behind the kernel, so they are written down here.

use rustix::ioctl::{Opcode, opcode};

/// `UFFD_USER_MODE_ONLY`: faults of system calls are not served, hence no privilege is needed.
pub(super) const USER_MODE_ONLY: u32 = 1;
/// `UFFD_API`: the protocol's version.
pub(super) const API_VERSION: u64 = 0xAA;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`.
pub(super) const FEATURE_WRITE_PROTECT: u64 = 1;
/// `UFFD_FEATURE_MISSING_HUGETLBFS`.
pub(super) const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
/// `UFFD_FEATURE_SIGBUS`.
pub(super) const FEATURE_SIGBUS: u64 = 1 << 7;
/// `UFFD_FEATURE_THREAD_ID`.
pub(super) const FEATURE_THREAD_ID: u64 = 1 << 8;
/// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`.
pub(super) const FEATURE_WRITE_PROTECT_HUGETLBFS: u64 = 1 << 12;
/// `UFFD_FEATURE_POISON`.
pub(super) const FEATURE_POISON: u64 = 1 << 14;
/// `UFFD_FEATURE_MOVE`.
pub(super) const FEATURE_MOVE: u64 = 1 << 16;
/// `UFFDIO_REGISTER_MODE_MISSING`.
pub(super) const REGISTER_MISSING: u64 = 1;
/// `UFFDIO_REGISTER_MODE_WP`.
pub(super) const REGISTER_WRITE_PROTECT: u64 = 1 << 1;
/// `UFFDIO_COPY_MODE_DONTWAKE`.
pub(super) const COPY_DONT_WAKE: u64 = 1;
/// `UFFDIO_ZEROPAGE_MODE_DONTWAKE`.
pub(super) const ZERO_PAGE_DONT_WAKE: u64 = 1;
/// `UFFDIO_COPY_MODE_WP`.
pub(super) const COPY_WRITE_PROTECTED: u64 = 1 << 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
pub(super) const WRITE_PROTECT_ON: u64 = 1;
/// `UFFD_EVENT_PAGEFAULT`.
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
/// `UFFD_EVENT_FORK`.
pub(super) const EVENT_FORK: u8 = 0x13;
/// `UFFD_EVENT_REMAP`.
pub(super) const EVENT_REMAP: u8 = 0x14;
/// `UFFD_EVENT_REMOVE`.
pub(super) const EVENT_REMOVE: u8 = 0x15;
/// `UFFD_EVENT_UNMAP`.
pub(super) const EVENT_UNMAP: u8 = 0x16;
/// `UFFD_PAGEFAULT_FLAG_WRITE`.
pub(super) const FAULT_WRITE: u64 = 1;
/// `UFFD_PAGEFAULT_FLAG_WP`.
pub(super) const FAULT_WRITE_PROTECTED: u64 = 1 << 1;
/// `UFFD_PAGEFAULT_FLAG_MINOR`.
pub(super) const FAULT_MINOR: u64 = 1 << 2;

/// `struct uffdio_api`.
#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_register`, its range written out.
#[repr(C)]
pub(super) struct Register {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
pub(super) struct Copy {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Out: the bytes copied, or a negative error number.
    pub(super) copy: i64,
}

/// `struct uffdio_zeropage`, its range written out.
#[repr(C)]
pub(super) struct ZeroPage {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Out: the bytes filled, or a negative error number.
    pub(super) filled: i64,
}

/// `struct uffdio_move`.
#[repr(C)]
pub(super) struct Move {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Out: the bytes moved, or a negative error number.
    pub(super) moved: i64,
}

/// `struct uffdio_writeprotect`, its range written out.
#[repr(C)]
pub(super) struct WriteProtect {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
}

/// `struct uffdio_poison`, its range written out.
#[repr(C)]
pub(super) struct Poison {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Out: the bytes poisoned, or a negative error number.
    pub(super) updated: i64,
}

/// `struct uffd_msg`. What the words are depends on the event.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) event: u8,
    pub(super) reserved: [u8; 7],
    pub(super) words: [u64; 3],
}

/// The 32 bits that come first in memory.
pub(super) fn first_half(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

const TYPE: u8 = 0xAA;

/// `UFFDIO_API`.
pub(super) const API: Opcode = opcode::read_write::<Api>(TYPE, 0x3F);
/// `UFFDIO_REGISTER`.
pub(super) const REGISTER: Opcode = opcode::read_write::<Register>(TYPE, 0x00);
/// `UFFDIO_UNREGISTER`. It is declared as one that reads.
pub(super) const UNREGISTER: Opcode = opcode::read::<Range>(TYPE, 0x01);
/// `UFFDIO_WAKE`. It is declared as one that reads.
pub(super) const WAKE: Opcode = opcode::read::<Range>(TYPE, 0x02);
/// `UFFDIO_COPY`.
pub(super) const COPY: Opcode = opcode::read_write::<Copy>(TYPE, 0x03);
/// `UFFDIO_ZEROPAGE`.
pub(super) const ZERO_PAGE: Opcode = opcode::read_write::<ZeroPage>(TYPE, 0x04);
/// `UFFDIO_MOVE`.
pub(super) const MOVE: Opcode = opcode::read_write::<Move>(TYPE, 0x05);
/// `UFFDIO_WRITEPROTECT`.
pub(super) const WRITE_PROTECT: Opcode = opcode::read_write::<WriteProtect>(TYPE, 0x06);
/// `UFFDIO_POISON`.
pub(super) const POISON: Opcode = opcode::read_write::<Poison>(TYPE, 0x08);
/// `USERFAULTFD_IOC_NEW`, of `/dev/userfaultfd`.
pub(super) const NEW: Opcode = opcode::none(TYPE, 0x00);

const _: () = {
    assert!(size_of::<Api>() == 24);
    assert!(size_of::<Register>() == 32);
    assert!(size_of::<Copy>() == 40);
    assert!(size_of::<Message>() == 32);
};

// How a number is put together differs on a few architectures.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = {
    assert!(API == 0xC018_AA3F);
    assert!(REGISTER == 0xC020_AA00);
    assert!(UNREGISTER == 0x8010_AA01);
    assert!(WAKE == 0x8010_AA02);
    assert!(COPY == 0xC028_AA03);
    assert!(ZERO_PAGE == 0xC020_AA04);
    assert!(MOVE == 0xC028_AA05);
    assert!(WRITE_PROTECT == 0xC018_AA06);
    assert!(POISON == 0xC020_AA08);
    assert!(NEW == 0xAA00);
};
