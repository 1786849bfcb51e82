//! VMAs: the map's record of each mapping.

use alloc::sync::Arc;
use core::ptr;

use pervma::Payload;

use crate::abi::pages;
use crate::file::{File, FileFacts, Inode, OBJECTS, Object};
use crate::flags::VmFlags;

/// A mapping: its flags, what it maps, and which anonymous pages it may have.
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
    /// The flags: which accesses it allows, and how calls treat it.
    pub flags: VmFlags,
    /// The page of the file at its start, or without a file the number of the page at which it was
    /// first mapped.
    pub page_offset: u64,
    /// The file or memory that is mapped.
    pub source: Source,
    /// The owner of its anonymous pages, if it can have any yet.
    pub anon: Option<AnonVma>,
    /// The name of anonymous memory, if it was given one.
    pub name: Option<Arc<str>>,
}

/// The file or memory that a VMA maps.
#[derive(Clone, Debug)]
pub enum Source {
    /// Private anonymous memory: zeros at first.
    Anonymous,
    /// Shared anonymous memory: zeros at first, and shared with the children of a fork. Each call
    /// that maps some makes an object.
    SharedAnonymous(Arc<Object>),
    /// An open file.
    File(Arc<dyn File>),
    /// Private memory of `/dev/zero`, which this open file is: anonymous memory that keeps the
    /// file's page offset, merges and is shown as a file, and cannot be named.
    Zero(Arc<dyn File>),
    /// Pages of the kernel's own, by the name that they are shown with: `[vdso]`, `[vvar]`. They
    /// have no file, and a mapping of them cannot be split. No call maps some:
    /// [`Mm::adopt`](crate::Mm::adopt).
    #[doc(alias = "vm_special_mapping")]
    Special(Arc<str>),
}

/// The owner of the anonymous pages of one or more VMAs.
///
/// A VMA gets one when it can first have anonymous pages: when private memory is written. Two VMAs
/// with different ones never merge; and what came from the parent of a fork does not merge with
/// what has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "anon_vma")]
pub struct AnonVma {
    /// Its number among those of an address space and its forks.
    pub number: u64,
    /// Whether its pages may be shared with the parent of a fork.
    pub from_parent: bool,
}

impl PartialEq for Source {
    /// Compares open files by their identity, whatever their facts are.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::SharedAnonymous(a), Self::SharedAnonymous(b)) => Arc::ptr_eq(a, b),
            (Self::File(a), Self::File(b)) | (Self::Zero(a), Self::Zero(b)) => {
                ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
            }
            (Self::Special(a), Self::Special(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Source {}

impl Vma {
    /// Whether it is private anonymous memory. That of `/dev/zero` is, too.
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
        matches!(self.source, Source::Anonymous | Source::Zero(_))
    }

    /// The inode that it maps: none if its memory is its own.
    ///
    /// ```
    /// use pervma_linux::{Config, File, Mm, NoBacking, OpenFile, Source, StdPlatform, abi::*};
    /// use std::sync::Arc;
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let prot = PROT_READ | PROT_WRITE;
    /// let addr = mm.mmap(0, 4096, prot, MAP_SHARED | MAP_ANONYMOUS, None, 0)?;
    /// let (_, vma) = mm.lookup(addr)?.ok_or("just mapped")?;
    /// let Source::SharedAnonymous(object) = &vma.source else { return Err("shared")? };
    ///
    /// // Opened at /proc/PID/map_files, and mapped again: the same memory, by another open file.
    /// let file: Arc<dyn File> = Arc::new(OpenFile::<StdPlatform>::of_object(object));
    /// let again = mm.mmap(0, 4096, prot, MAP_SHARED, Some(&file), 0)?;
    /// let (_, other) = mm.lookup(again)?.ok_or("just mapped")?;
    /// assert!(vma.inode().is_some() && vma.inode() == other.inode());
    /// assert_ne!(vma.source, other.source);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    #[doc(alias("i_ino", "st_ino"))]
    pub fn inode(&self) -> Option<Inode> {
        match &self.source {
            Source::SharedAnonymous(object) => {
                Some(Inode { device: OBJECTS, number: object.number })
            }
            Source::File(file) => {
                let FileFacts { device, inode, .. } = file.facts();
                Some(Inode { device, number: inode })
            }
            Source::Anonymous | Source::Zero(_) | Source::Special(_) => None,
        }
    }

    /// Whether Linux has a file for it: `/dev/zero`, or a nameless one if it is shared.
    #[doc(alias = "vm_file")]
    pub(crate) fn has_file(&self) -> bool {
        !matches!(self.source, Source::Anonymous | Source::Special(_))
    }

    /// Whether it cannot be split.
    #[doc(alias = "may_split")]
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.source, Source::Special(_))
    }

    /// The rest of it from `offset` bytes on.
    pub(crate) fn from(&self, offset: usize) -> Self {
        Self { page_offset: self.page_after(offset), ..self.clone() }
    }

    /// The page offset `offset` bytes after its start.
    pub(crate) fn page_after(&self, offset: usize) -> u64 {
        self.page_offset.wrapping_add(pages(offset) as u64)
    }
}

impl Payload for Vma {
    /// Merging is not decided here, but by a look at three VMAs at a time, in `merge.rs`.
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.from(offset)))
    }
}
