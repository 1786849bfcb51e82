//! What a VMA holds.

use alloc::sync::Arc;
use core::ptr;

use pervma::Payload;

use crate::abi::pages;
use crate::file::File;
use crate::flags::VmFlags;

/// What a VMA holds: its flags, what it maps, and which pages of its own it may have.
///
/// ```
/// use pervma_linux::{Config, Mm, NoBacking, VmFlags, abi};
///
/// let mm = Mm::new(NoBacking, Config::default());
/// let addr = mm.mmap(0, 4096, abi::PROT_READ, abi::MAP_PRIVATE | abi::MAP_ANONYMOUS, None, 0)?;
/// let (range, vma) = mm.lookup(addr)?.ok_or("just mapped")?;
/// assert_eq!(range, addr..addr + 4096);
/// assert!(vma.flags.has(VmFlags::READ) && vma.is_anonymous());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "vm_area_struct")]
pub struct Vma {
    /// What may be done with it.
    pub flags: VmFlags,
    /// The page of the file at its start; without a file, the page it was first mapped at.
    pub page_offset: u64,
    /// What is mapped, if it is not memory of the process's own.
    pub source: Source,
    /// Whose pages of its own it has, if it can have any yet.
    pub anon: Option<AnonVma>,
    /// A name given to anonymous memory.
    pub name: Option<Arc<str>>,
}

/// What a VMA maps.
#[derive(Clone, Debug)]
pub enum Source {
    /// Memory of the process's own, empty at first.
    Anonymous,
    /// Memory shared with children, empty at first. Each call that maps some makes an object.
    SharedAnonymous(Arc<Object>),
    /// An open file.
    File(Arc<dyn File>),
}

/// Shared memory without a name.
#[derive(Debug)]
pub struct Object {
    /// Counts the objects of an address space and its forks.
    pub number: u64,
    /// Its size in bytes, which no call changes.
    pub size: usize,
}

/// A group of VMAs that may share pages of their own, and whether it came from a fork's parent. VMAs
/// of different groups never merge, and those of a fork's child not with untouched ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "anon_vma")]
pub struct AnonVma {
    /// Which group.
    pub number: u64,
    /// Whether pages may be shared with the parent of a fork.
    pub from_parent: bool,
}

impl PartialEq for Source {
    /// The same open file, not only the same file.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::SharedAnonymous(a), Self::SharedAnonymous(b)) => Arc::ptr_eq(a, b),
            (Self::File(a), Self::File(b)) => ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)),
            _ => false,
        }
    }
}

impl Eq for Source {}

impl Vma {
    /// Whether it has no file, not even a nameless one.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, 0, abi::MAP_SHARED | abi::MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.lookup(addr)?.map(|(_, vma)| vma.is_anonymous()), Some(false));
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    #[must_use]
    #[doc(alias = "vma_is_anonymous")]
    pub fn is_anonymous(&self) -> bool {
        matches!(self.source, Source::Anonymous)
    }

    /// The same from `offset` bytes on.
    pub(crate) fn from(&self, offset: usize) -> Self {
        Self { page_offset: self.page_after(offset), ..self.clone() }
    }

    /// The page offset `offset` bytes after its start.
    pub(crate) fn page_after(&self, offset: usize) -> u64 {
        self.page_offset.wrapping_add(pages(offset) as u64)
    }
}

impl Payload for Vma {
    /// There is no merging here: it is decided by a look at three VMAs at a time, in `merge.rs`.
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.from(offset)))
    }
}
