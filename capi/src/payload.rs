//! Payloads: numbers of the caller's, whose callbacks say how they are split, merged and destroyed.
#![expect(unsafe_code, reason = "calls the caller's callbacks")]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;

use address_space::{Payload, RemovedVmas, SplitMerge};
use libc::size_t;

use crate::boundary::callback;

/// Destroys a payload. It is called once for each payload that was handed in, when the last VMA
/// that has it is gone and nobody reads it, on the thread that made it go. No lock is held, but for
/// want of memory.
pub type Destroy = Option<unsafe extern "C-unwind" fn(context: *mut c_void, payload: u64)>;

/// Splits a VMA `offset` bytes from its start. `*upper` is the payload of the upper part: it is
/// `payload` at first, and may be changed; the lower part keeps `payload`. Non-zero to go on, 0 to
/// refuse (PERVMA_EPARTLY).
///
/// What it makes may come to nothing, and it may be called again for the same split: a payload that
/// it made is destroyed then. Called with no lock held, but inside an edit of the caller's.
pub type Split = Option<
    unsafe extern "C-unwind" fn(
        context: *mut c_void,
        payload: u64,
        offset: size_t,
        upper: *mut u64,
    ) -> c_int,
>;

/// Merges a VMA of `len` bytes with the one that starts where it ends. `*merged` is the payload of
/// both: it is `payload` at first, and may be changed. Non-zero to merge, 0 to keep them apart.
///
/// What it makes may come to nothing, and is destroyed then. CALLED UNDER THE LOCK OF THE SPACE,
/// inside an edit: it must be short, and call nothing of this library but lookups.
pub type Merge = Option<
    unsafe extern "C-unwind" fn(
        context: *mut c_void,
        payload: u64,
        len: size_t,
        next: u64,
        merged: *mut u64,
    ) -> c_int,
>;

/// What becomes of the part from `start` to `end` of a range, in which `*payload` is mapped: it may
/// be changed. Positive: the part is mapped with `*payload`. 0: it is unmapped. Negative: the
/// callback has failed, and the whole change is given up (PERVMA_EGIVEN_UP): nothing has changed,
/// and `*payload` is not looked at.
///
/// Called with no lock held, but inside an edit of the caller's; perhaps again for the same part,
/// when another thread is in the way. What it makes may come to nothing, and is destroyed then.
pub type Change = Option<
    unsafe extern "C-unwind" fn(
        context: *mut c_void,
        start: usize,
        end: usize,
        payload: *mut u64,
    ) -> c_int,
>;

/// How the payloads of a space are split, merged and destroyed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callbacks {
    pub(crate) destroy: Destroy,
    pub(crate) split: Split,
    pub(crate) merge: Merge,
    pub(crate) context: *mut c_void,
}

// SAFETY: the pointer is only handed to the callbacks, which the header says are called on any
// thread.
unsafe impl Send for Callbacks {}
// SAFETY: as for `Send`.
unsafe impl Sync for Callbacks {}

impl Callbacks {
    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        self.destroy.is_some() || self.split.is_some() || self.merge.is_some()
    }
}

/// A payload that was handed in, with the callbacks of its space; dropped once.
#[derive(Debug)]
struct HandedIn {
    value: u64,
    callbacks: Callbacks,
    /// None was made: a callback has given its change up.
    is_given_up: bool,
}

impl Drop for HandedIn {
    fn drop(&mut self) {
        if let Some(destroy) = self.callbacks.destroy {
            // SAFETY: a function of the caller's, called as its type says.
            callback(|| unsafe { destroy(self.callbacks.context, self.value) });
        }
    }
}

/// What a VMA has: the caller's number. VMAs that have come of one by splitting share it.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) value: u64,
    /// Only in spaces with callbacks.
    handed_in: Option<Arc<HandedIn>>,
}

impl Word {
    pub(crate) fn new(value: u64, callbacks: Option<Callbacks>) -> Self {
        let handed_in =
            callbacks.map(|callbacks| Arc::new(HandedIn { value, callbacks, is_given_up: false }));
        Self { value, handed_in }
    }

    /// In the place of a payload that a callback could not make.
    fn given_up() -> Self {
        let callbacks = Callbacks { destroy: None, split: None, merge: None, context: null_mut() };
        let handed_in = HandedIn { value: 0, callbacks, is_given_up: true };
        Self { value: 0, handed_in: Some(Arc::new(handed_in)) }
    }

    /// The payload that `change` makes of this one for a part, itself if that is none; and whether
    /// the part stays mapped.
    pub(crate) fn changed(
        &self,
        change: Change,
        context: *mut c_void,
        part: &Range<usize>,
    ) -> (Self, bool) {
        let Some(change) = change else { return (self.clone(), true) };
        let mut value = self.value;
        let out = &raw mut value;
        // SAFETY: a function of the caller's, called as its type says.
        let said = callback(|| unsafe { change(context, part.start, part.end, out) });
        (if said < 0 { Self::given_up() } else { self.or_new(value) }, said != 0)
    }

    fn callbacks(&self) -> Option<Callbacks> {
        Some(self.handed_in.as_ref()?.callbacks)
    }

    /// The payload that a callback has made of this one: the same, unless it is another number.
    pub(crate) fn or_new(&self, value: u64) -> Self {
        if value == self.value { self.clone() } else { Self::new(value, self.callbacks()) }
    }

    /// The payload of this and the next VMA, which a callback has made of theirs.
    fn merged(&self, next: &Self, value: u64) -> Self {
        if value != self.value && value == next.value { next.clone() } else { self.or_new(value) }
    }

    /// Gives up a payload that comes back to the caller, undestroyed.
    pub(crate) fn give_back(self) {
        if let Some(Ok(mut handed_in)) = self.handed_in.map(Arc::try_unwrap) {
            handed_in.callbacks.destroy = None;
        }
    }
}

impl Payload for Word {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        let mut upper = self.value;
        if let Some(Callbacks { split: Some(split), context, .. }) = self.callbacks() {
            let upper = &raw mut upper;
            // SAFETY: a function of the caller's, called as its type says.
            let agreed = callback(|| unsafe { split(context, self.value, offset, upper) });
            if agreed == 0 {
                return None;
            }
        }
        Some((self.clone(), self.or_new(upper)))
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        let mut merged = self.value;
        let agreed = match self.callbacks() {
            Some(Callbacks { merge: Some(merge), context, .. }) => {
                let merged = &raw mut merged;
                // SAFETY: a function of the caller's, called as its type says.
                callback(|| unsafe { merge(context, self.value, len, next.value, merged) }) != 0
            }
            _ => self.value == next.value,
        };
        agreed.then(|| self.merged(next, merged))
    }

    fn may_be_mapped(&self) -> bool {
        self.handed_in.as_ref().is_none_or(|handed_in| !handed_in.is_given_up)
    }
}

/// How one change splits and merges, in place of the space's callbacks; with addresses. A callback
/// that is NULL is the space's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Splits the VMA from `start` to `end` at `at`, otherwise as pervma_split_fn.
    pub split: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            payload: u64,
            start: usize,
            end: usize,
            at: usize,
            upper: *mut u64,
        ) -> c_int,
    >,
    /// Merges the VMA from `start` to `end` with the one that starts at `end`, otherwise as
    /// pervma_merge_fn: UNDER THE LOCK OF THE SPACE.
    pub merge: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            payload: u64,
            start: usize,
            end: usize,
            next: u64,
            merged: *mut u64,
        ) -> c_int,
    >,
    /// The first argument of both.
    pub context: *mut c_void,
}

impl SplitMerge<Word> for &Rules {
    fn split(&mut self, word: &Word, range: Range<usize>, at: usize) -> Option<(Word, Word)> {
        let Some(split) = self.split else { return word.split(at - range.start) };
        let (mut upper, context, value) = (word.value, self.context, word.value);
        let out = &raw mut upper;
        // SAFETY: a function of the caller's, called as its type says.
        let agreed = callback(|| unsafe { split(context, value, range.start, range.end, at, out) });
        (agreed != 0).then(|| (word.clone(), word.or_new(upper)))
    }

    fn merge(&mut self, word: &Word, range: Range<usize>, next: &Word) -> Option<Word> {
        let Some(merge) = self.merge else { return word.merge(range.len(), next) };
        let (mut merged, context, value) = (word.value, self.context, word.value);
        let out = &raw mut merged;
        let call = || {
            // SAFETY: a function of the caller's, called as its type says.
            unsafe { merge(context, value, range.start, range.end, next.value, out) }
        };
        let agreed = callback(call) != 0;
        agreed.then(|| word.merged(next, merged))
    }

    fn may_be_mapped(&mut self, word: &Word, _range: Range<usize>) -> bool {
        word.may_be_mapped()
    }
}

/// Told of each VMA that a change has removed or replaced, or of the part that lay in the range, in
/// order of address, when the change is made and no reader has it any more. No lock is held, so it
/// may call this library (inside an edit of the caller's, the edit goes on). The payload is still
/// there; it is destroyed when the callback has returned, unless another VMA shares it.
pub type OnRemoved = Option<
    unsafe extern "C-unwind" fn(context: *mut c_void, start: usize, end: usize, payload: u64),
>;

/// Tells of what was removed.
pub(crate) fn tell(removed: RemovedVmas<Word>, on_removed: OnRemoved, context: *mut c_void) {
    for vma in removed {
        if let Some(on_removed) = on_removed {
            let (range, value) = (&vma.range, vma.payload.value);
            // SAFETY: a function of the caller's, called as its type says.
            callback(|| unsafe { on_removed(context, range.start, range.end, value) });
        }
    }
}
