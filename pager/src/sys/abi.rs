//! The kernel's structures and numbers (`linux/userfaultfd.h`), as far as they are used. Headers
//! of distributions lag behind the kernel, so they are written down here.

use rustix::ioctl::{Opcode, opcode};

/// `UFFD_USER_MODE_ONLY`: faults of system calls are not served, hence no privilege is needed.
pub(super) const USER_MODE_ONLY: u32 = 1;
/// `UFFD_API`: the protocol's version.
pub(super) const API_VERSION: u64 = 0xAA;
/// `UFFD_FEATURE_SIGBUS`.
pub(super) const FEATURE_SIGBUS: u64 = 1 << 7;
/// `UFFDIO_REGISTER_MODE_MISSING`.
pub(super) const REGISTER_MISSING: u64 = 1;
/// `UFFDIO_COPY_MODE_DONTWAKE`.
pub(super) const COPY_DONT_WAKE: u64 = 1;

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

const TYPE: u8 = 0xAA;

/// `UFFDIO_API`.
pub(super) const API: Opcode = opcode::read_write::<Api>(TYPE, 0x3F);
/// `UFFDIO_REGISTER`.
pub(super) const REGISTER: Opcode = opcode::read_write::<Register>(TYPE, 0x00);
/// `UFFDIO_COPY`.
pub(super) const COPY: Opcode = opcode::read_write::<Copy>(TYPE, 0x03);

const _: () = {
    assert!(size_of::<Api>() == 24);
    assert!(size_of::<Register>() == 32);
    assert!(size_of::<Copy>() == 40);
};

// How a number is put together differs on a few architectures.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = {
    assert!(API == 0xC018_AA3F);
    assert!(REGISTER == 0xC020_AA00);
    assert!(COPY == 0xC028_AA03);
};
