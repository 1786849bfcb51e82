//! How payloads are split and merged.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::ops::Range;

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
/// Payloads are moved, and a change has several of them on the stack at a time. One of more than
/// 16 KiB does not compile: what is large belongs in an [`Arc`], which the parts of a split VMA
/// share, or in a [`Box`] of which the payload consists, so that it never is on the stack:
///
/// ```
/// use pervma::{AddressSpace, Payload};
///
/// struct Counters(Box<[u64; 1 << 17]>); // 1 MiB
///
/// impl Payload for Counters {
///     fn split(&self, _offset: usize) -> Option<(Self, Self)> {
///         let copy = || Self(self.0.clone()); // from box to box
///         Some((copy(), copy()))
///     }
/// }
///
/// let space = AddressSpace::new(4096);
/// let zeros = vec![0; 1 << 17].into_boxed_slice();
/// space.insert(0x1000..0x3000, Counters(zeros.try_into().expect("the length of the array")))?;
/// space.remove(0x1000..0x2000)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// One that stands for something indivisible says nothing more: `impl Payload for Device {}`. A
/// change that would split its VMA is refused then.
///
/// Numbers, `bool`, `char`, `()` and [`String`] stand for attributes: both parts get the same, and
/// equal neighbours merge. So do `&V` and [`Arc<V>`], which are equal if they are the same object.
/// A [`Box`], an [`Option`] and a tuple split and merge as what is in them does, a tuple if all of
/// it does; what a box has is split on the stack.
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

    /// Whether a VMA may have it; `true` by default.
    ///
    /// For functions that can fail to make one, in [`update`](crate::AddressSpace::update),
    /// [`relocate`](crate::AddressSpace::relocate) and their like: of what they return it is asked
    /// before anything has changed, and if it may not, the whole change is given up
    /// ([`ChangeError::GivenUp`](crate::ChangeError::GivenUp)). It is asked of nothing else.
    fn may_be_mapped(&self) -> bool {
        true
    }
}

/// How one change splits and merges payloads, where their type does not say it or the change is to
/// know more than they do: for [`AddressSpace::change`](crate::AddressSpace::change) and
/// [`Edit::change`](crate::Edit::change).
///
/// As [`Payload`], but with the addresses, and with what the caller knows. What is said there of
/// failures and panics holds here, too.
///
/// ```
/// use std::ops::Range;
/// use pervma::{AddressSpace, SplitMerge};
///
/// /// Handles of mappings that another program keeps.
/// struct Handles {
///     last: u64,
/// }
///
/// impl SplitMerge<u64> for Handles {
///     fn split(&mut self, handle: &u64, _range: Range<usize>, _at: usize) -> Option<(u64, u64)> {
///         self.last += 1; // the upper part gets a handle of its own
///         Some((*handle, self.last))
///     }
/// }
///
/// let space = AddressSpace::new(4096);
/// space.insert(0x1000..0x5000, 7)?;
/// let mut handles = Handles { last: 7 };
/// space.change(0x2000..0x3000, &mut handles, |_, _| None)?; // unmapped
/// assert!(space.view()?.iter().eq([(0x1000..0x2000, &7), (0x3000..0x5000, &9)]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait SplitMerge<T> {
    /// The payloads of the two parts of the VMA `range`, with `payload`, that is split at the
    /// address `at`; `None` if it cannot be split, as by default.
    fn split(&mut self, payload: &T, range: Range<usize>, at: usize) -> Option<(T, T)> {
        let _ = (payload, range, at);
        None
    }

    /// The payload of the VMA `range`, with `payload`, and of the one that starts where it ends,
    /// with `next`, as one; `None` to keep them apart, as by default.
    ///
    /// It runs in an edit, and what it makes may come to nothing, as in [`Payload::merge`].
    fn merge(&mut self, payload: &T, range: Range<usize>, next: &T) -> Option<T> {
        let _ = (payload, range, next);
        None
    }

    /// Whether the VMA `range` may have `payload`, which the function of the change has made for
    /// it, as [`Payload::may_be_mapped`]; `true` by default.
    ///
    /// ```
    /// use std::cell::Cell;
    /// use std::ops::Range;
    /// use pervma::{AddressSpace, ChangeError, SplitMerge};
    ///
    /// /// Nothing is split, and no payload taken after a failure.
    /// struct Unless<'a>(&'a Cell<bool>);
    /// impl<T> SplitMerge<T> for Unless<'_> {
    ///     fn may_be_mapped(&mut self, _payload: &T, _range: Range<usize>) -> bool {
    ///         !self.0.get()
    ///     }
    /// }
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x2000, 1)?;
    /// space.insert(0x5000..0x6000, 2)?;
    /// let has_failed = Cell::new(false);
    /// let changed = space.change(0x1000..0x6000, Unless(&has_failed), |part, n| {
    ///     has_failed.set(part.start == 0x5000);
    ///     Some(n + 1)
    /// });
    /// assert_eq!(changed.err(), Some(ChangeError::GivenUp { part: 0x5000..0x6000 }));
    /// assert_eq!(*space.try_read(0x1000)?, 1); // as it was
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn may_be_mapped(&mut self, payload: &T, range: Range<usize>) -> bool {
        let _ = (payload, range);
        true
    }
}

impl<T, R: SplitMerge<T> + ?Sized> SplitMerge<T> for &mut R {
    fn split(&mut self, payload: &T, range: Range<usize>, at: usize) -> Option<(T, T)> {
        (**self).split(payload, range, at)
    }

    fn merge(&mut self, payload: &T, range: Range<usize>, next: &T) -> Option<T> {
        (**self).merge(payload, range, next)
    }

    fn may_be_mapped(&mut self, payload: &T, range: Range<usize>) -> bool {
        (**self).may_be_mapped(payload, range)
    }
}

/// As the payloads' type says.
#[derive(Clone, Copy)]
pub(crate) struct AsPayload;

impl<T: Payload> SplitMerge<T> for AsPayload {
    #[inline]
    fn split(&mut self, payload: &T, range: Range<usize>, at: usize) -> Option<(T, T)> {
        payload.split(at - range.start)
    }

    #[inline]
    fn merge(&mut self, payload: &T, range: Range<usize>, next: &T) -> Option<T> {
        payload.merge(range.end - range.start, next)
    }

    #[inline]
    fn may_be_mapped(&mut self, payload: &T, _range: Range<usize>) -> bool {
        payload.may_be_mapped()
    }
}

/// VMAs stay whole, whatever their payloads are.
#[derive(Clone, Copy)]
pub(crate) struct Whole;

impl<T> SplitMerge<T> for Whole {}

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

impl Payload for String {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.clone()))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        (self == next).then(|| self.clone())
    }
}

impl<P: Payload> Payload for Box<P> {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        (**self).split(offset).map(|(left, right)| (Self::new(left), Self::new(right)))
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        (**self).merge(len, next).map(Self::new)
    }

    fn may_be_mapped(&self) -> bool {
        (**self).may_be_mapped()
    }
}

impl<P: Payload> Payload for Option<P> {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        match self {
            Some(payload) => payload.split(offset).map(|(left, right)| (Some(left), Some(right))),
            None => Some((None, None)),
        }
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        match (self, next) {
            (Some(payload), Some(next)) => payload.merge(len, next).map(Some),
            (None, None) => Some(None),
            _ => None,
        }
    }

    fn may_be_mapped(&self) -> bool {
        self.as_ref().is_none_or(P::may_be_mapped)
    }
}

macro_rules! tuple {
    ($($name:ident $field:tt),*) => {
        impl<$($name: Payload),*> Payload for ($($name,)*) {
            fn split(&self, offset: usize) -> Option<(Self, Self)> {
                let parts = ($(self.$field.split(offset)?,)*);
                Some((($(parts.$field.0,)*), ($(parts.$field.1,)*)))
            }

            fn merge(&self, len: usize, next: &Self) -> Option<Self> {
                Some(($(self.$field.merge(len, &next.$field)?,)*))
            }

            fn may_be_mapped(&self) -> bool {
                $(self.$field.may_be_mapped())&&*
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    /// A part of something, which knows where it begins.
    #[derive(Clone, Debug, PartialEq)]
    struct Part(usize);

    impl Payload for Part {
        fn split(&self, offset: usize) -> Option<(Self, Self)> {
            Some((self.clone(), Self(self.0 + offset)))
        }

        fn merge(&self, len: usize, next: &Self) -> Option<Self> {
            (self.0 + len == next.0).then(|| self.clone())
        }
    }

    #[test]
    fn what_is_inside_decides() {
        assert_eq!(Box::new(Part(1)).split(4), Some((Box::new(Part(1)), Box::new(Part(5)))));
        assert_eq!(Box::new(Part(1)).merge(4, &Box::new(Part(5))), Some(Box::new(Part(1))));
        assert_eq!(Some(Part(1)).split(4), Some((Some(Part(1)), Some(Part(5)))));
        assert_eq!(None::<Part>.split(4), Some((None, None)));
        assert_eq!(None.merge(4, &Some(Part(5))), None);
        assert_eq!(None::<Part>.merge(4, &None), Some(None));
        assert_eq!(Some(Part(1)).merge(4, &Some(Part(6))), None);
        let name = String::from("a");
        assert_eq!(name.split(4), Some((name.clone(), name.clone())));
        assert_eq!(name.merge(4, &String::from("b")), None);

        assert_eq!((1, Part(1), ()).split(4), Some(((1, Part(1), ()), (1, Part(5), ()))));
        assert_eq!((1, Part(1)).merge(4, &(1, Part(5))), Some((1, Part(1))));
        assert_eq!((1, Part(1)).merge(4, &(2, Part(5))), None);
        assert_eq!((1, 2, 3, Part(1)).merge(4, &(1, 2, 3, Part(6))), None);

        struct Never;
        impl Payload for Never {
            fn may_be_mapped(&self) -> bool {
                false
            }
        }
        assert!(!Box::new(Never).may_be_mapped() && !Some(Never).may_be_mapped());
        assert!(None::<Never>.may_be_mapped() && !(1, Never).may_be_mapped());
        assert!(!(Never, 1, 2).may_be_mapped() && (1, 2, 3, Part(1)).may_be_mapped());

        struct Device;
        impl Payload for Device {}
        assert!((1, Device).split(4).is_none() && (Device, 1).merge(4, &(Device, 1)).is_none());
    }
}
