//! How payloads are split and merged.

use alloc::sync::Arc;

/// How the payload of a VMA is split, when a change begins or ends inside of the VMA, and merged
/// with that of a neighbour.
///
/// Both look at payloads and make new ones. What they make replaces what they saw only when the
/// whole operation has succeeded; until then, and if one of them panics, the map is as it was.
///
/// A payload that describes where its bytes come from moves its offset:
///
/// ```
/// use pervma::{AddressSpace, Payload};
///
/// /// Bytes of a file, from an offset on.
/// #[derive(Clone, Debug, PartialEq)]
/// struct FileBytes {
///     file: u32,
///     offset: usize,
/// }
///
/// impl Payload for FileBytes {
///     fn split(&self, offset: usize) -> Option<(Self, Self)> {
///         Some((self.clone(), Self { file: self.file, offset: self.offset + offset }))
///     }
///     fn merge(&self, len: usize, next: &Self) -> Option<Self> {
///         (self.file == next.file && self.offset + len == next.offset).then(|| self.clone())
///     }
/// }
///
/// let space = AddressSpace::new(4096);
/// space.edit()?.insert(0x1_0000..0x4_0000, FileBytes { file: 3, offset: 0 })?;
/// space.edit()?.remove(0x2_0000..0x3_0000)?;
/// assert_eq!(space.try_read(0x3_0000)?.offset, 0x2_0000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Payloads are moved, and a change has several of them on the stack at a time: large ones belong
/// in a `Box`.
///
/// One that stands for something indivisible says nothing more: `impl Payload for Device {}`. A
/// change that would split its VMA is refused then.
///
/// Numbers, `bool`, `char` and `()` stand for attributes: both parts get the same, and equal
/// neighbours merge. So do `&P` and [`Arc<P>`], which are equal if they are the same object.
#[doc(alias("__split_vma", "vma_merge_region"))]
pub trait Payload: Sized {
    /// The payloads of the two parts of a VMA that is split `offset` bytes from its start; `None`
    /// if it cannot be split, as by default.
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        let _ = offset;
        None
    }

    /// The payload of this VMA, `len` bytes long, and of the one that starts where it ends, as one;
    /// `None` to keep them apart, as by default.
    ///
    /// A VMA outside of the changed range may have readers when this is called. If it still has one
    /// when the merged one could take its place, the two stay apart.
    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        let _ = (len, next);
        None
    }
}

macro_rules! attribute {
    ($($attribute:ty),*) => {$(
        impl Payload for $attribute {
            fn split(&self, _offset: usize) -> Option<(Self, Self)> {
                Some((*self, *self))
            }

            fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
                (self == next).then_some(*self)
            }
        }
    )*};
}

attribute!((), bool, char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

impl<V: ?Sized> Payload for &V {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self, self))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        core::ptr::eq(*self, *next).then_some(self)
    }
}

impl<V: ?Sized> Payload for Arc<V> {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((Self::clone(self), Self::clone(self)))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        Self::ptr_eq(self, next).then(|| Self::clone(self))
    }
}
