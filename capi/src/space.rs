//! Address spaces: made, changed, and looked through.
#![expect(unsafe_code, reason = "exports functions, and keeps edits between calls")]
#![expect(clippy::disallowed_types, reason = "which thread edits, and what depends on a space")]

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use address_space::{AddressSpace, ChangeError, Edit, GapSearch, InsertError, RemovedVmas};
use libc::size_t;

use crate::boundary::{Out, call, callback, given, waiting_call};
use crate::handles::{Kind, Object, get, make, make_in_slot, registry, slot, take};
use crate::payload::{Callbacks, Change, Destroy, Merge, OnRemoved, Rules, Split, Word, tell};
use crate::status::{Code, Status, fail, failed};
use crate::thread::{self, Host};

/// An address space: disjoint ranges of addresses, each a VMA with a payload and a lock of its own.
/// Any thread may use it.
#[derive(Debug)]
pub struct Space(());

/// Memory that spaces share (pervma_space_options.slab).
#[derive(Debug)]
pub struct Slab(());

/// A VMA as it was: copied out.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Vma {
    /// Its first address.
    pub start: usize,
    /// The address behind its last.
    pub end: usize,
    /// Its payload.
    pub payload: u64,
}

/// How a space is made. Zero it, then set what is wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SpaceOptions {
    /// In bytes, a power of two: the ends of every range are multiples of it. 0: 4096.
    pub granularity: size_t,
    /// The memory that the space shares with others. NULL: memory of its own. It must outlive the
    /// space, or pervma_slab_destroy says PERVMA_EIN_USE.
    pub slab: *mut Slab,
    /// NULL: payloads are plain numbers, and need no end.
    pub destroy: Destroy,
    /// NULL: the parts of a split VMA share its payload.
    pub split: Split,
    /// NULL: VMAs with equal payloads merge, where an operation merges.
    pub merge: Merge,
    /// The first argument of the three.
    pub context: *mut c_void,
    /// Zero.
    pub reserved: [usize; 4],
}

/// What to look for. Zero it, then set what is wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// In bytes, a multiple of the granularity.
    pub size: size_t,
    /// The start is a multiple of it, a power of two. 0: of the granularity.
    pub align: size_t,
    /// All of the gap lies at or above this.
    pub low: usize,
    /// All of the gap lies below this. 0: no limit.
    pub high: usize,
    /// Non-zero: the highest, in place of the lowest.
    pub top_down: c_int,
}

/// Is shown a VMA. Non-zero to go on, 0 to stop. CALLED UNDER THE LOCK OF THE SPACE (held for
/// reading, or for writing in an edit of the caller's).
pub type Show = Option<unsafe extern "C-unwind" fn(context: *mut c_void, vma: *const Vma) -> c_int>;

pub(crate) type Words = AddressSpace<Word, Host>;

/// What is behind a [`Space`].
pub(crate) struct SpaceData {
    pub(crate) space: Arc<Words>,
    pub(crate) callbacks: Option<Callbacks>,
    /// How many exclusions, reservations and registered readers there are.
    dependents: AtomicUsize,
    edit: OpenEdit,
    slab: Option<&'static SlabData>,
}

/// What is behind a [`Slab`].
pub(crate) struct SlabData {
    slab: Arc<address_space::Slab<Word, Host>>,
    spaces: AtomicUsize,
}

impl Object for SpaceData {
    const KIND: Kind = Kind::Space;
    type Handle = Space;
}

impl Object for SlabData {
    const KIND: Kind = Kind::Slab;
    type Handle = Slab;
}

/// The edit that a thread has open, from one call of it to another.
struct OpenEdit {
    /// The thread, or 0. Only that thread stores its own name, and takes it away.
    thread: AtomicUsize,
    /// Whether a call is using the edit: its callbacks, and a handler that interrupts it, cannot.
    is_used: Cell<bool>,
    edit: UnsafeCell<Option<Edit<'static, Word, Host>>>,
}

// SAFETY: all but `thread` is used by the thread that it names alone.
unsafe impl Sync for OpenEdit {}
// SAFETY: an edit that is left in a space which is destroyed is not there: that is refused.
unsafe impl Send for OpenEdit {}

impl OpenEdit {
    // RELAXED: a thread finds its own name if it stored it itself, and only then.
    fn is_mine(&self) -> bool {
        self.thread.load(Relaxed) == thread::name()
    }

    /// Keeps an edit that this thread has begun.
    fn open(&self, edit: Edit<'static, Word, Host>) {
        // SAFETY: this thread has the edit, so nobody else uses the place.
        unsafe { *self.edit.get() = Some(edit) };
        // RELAXED: only this thread looks for its name.
        self.thread.store(thread::name(), Relaxed);
    }

    /// Marks the edit as used until the result is dropped.
    fn enter(&self) -> Result<InUse<'_>, Status> {
        if self.is_used.replace(true) {
            let about = "called in a callback, or a handler, inside a call of this thread's edit";
            return Err(fail(Status::BusyOwn, &about));
        }
        Ok(InUse(&self.is_used))
    }
}

struct InUse<'a>(&'a Cell<bool>);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl SpaceData {
    /// Counts an exclusion, a reservation or a registered reader.
    pub(crate) fn count_dependent(&self) {
        // RELAXED: a number.
        self.dependents.fetch_add(1, Relaxed);
    }

    /// One of those has ended.
    pub(crate) fn forget_dependent(&self) {
        // RELAXED: a number.
        self.dependents.fetch_sub(1, Relaxed);
    }

    /// The space, for something that is kept. It stays until that has ended: `dependents` counts
    /// it, or a search for readers finds it, before the space is destroyed.
    pub(crate) fn kept(&self) -> &'static Words {
        // SAFETY: as above; the callers count.
        unsafe { &*Arc::as_ptr(&self.space) }
    }

    pub(crate) fn word(&self, value: u64) -> Word {
        Word::new(value, self.callbacks)
    }

    /// Runs `edited` with the edit that this thread has open, else `alone`.
    pub(crate) fn with_edit<R>(
        &self,
        edited: impl FnOnce(&mut Edit<'static, Word, Host>) -> R,
        alone: impl FnOnce(&'static Words) -> R,
    ) -> Result<R, Status> {
        if !self.edit.is_mine() {
            return Ok(alone(self.kept()));
        }
        let _used = self.edit.enter()?;
        // SAFETY: this thread has the edit, and no other call of it uses it.
        match unsafe { &mut *self.edit.edit.get() } {
            Some(edit) => Ok(edited(edit)),
            None => Ok(alone(self.kept())),
        }
    }

    /// Makes a change, and tells of what it has removed when nothing is locked any more.
    fn change<E: Code>(
        &self,
        edited: impl FnOnce(&mut Edit<'static, Word, Host>) -> Result<RemovedVmas<Word>, E>,
        alone: impl FnOnce(&'static Words) -> Result<RemovedVmas<Word>, E>,
        on_removed: OnRemoved,
        context: *mut c_void,
    ) -> Result<(), Status> {
        let removed = self.with_edit(edited, alone)?.map_err(failed)?;
        tell(removed, on_removed, context);
        Ok(())
    }
}

/// The payload goes back to the caller.
pub(crate) fn refused(error: InsertError<Word>) -> Status {
    error.payload.give_back();
    failed(error.kind)
}

/// Makes a slab, for spaces that share memory. What one space frees is used again by another.
///
/// @param out  receives the slab; destroyed by pervma_slab_destroy
/// @return PERVMA_OK; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EINVALID. Aborts when no memory is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_slab_create(out: *mut *mut Slab) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        let slab = Arc::new(address_space::Slab::with_platform());
        out.set(make(SlabData { slab, spaces: AtomicUsize::new(0) }));
        Ok(())
    })
}

/// Destroys a slab.
///
/// @return PERVMA_OK; PERVMA_EIN_USE when a space has it; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EHANDLE,
///         _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_slab_destroy(slab: *mut Slab) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle, which no other call uses.
        let data = unsafe { get::<SlabData>(slab) }?;
        // RELAXED: a number that spaces of other threads may change; those must not be made now.
        if data.spaces.load(Relaxed) != 0 {
            return Err(fail(Status::InUse, &"a space has the slab"));
        }
        // SAFETY: as above.
        unsafe { take::<SlabData>(slab) }.map(drop)
    })
}

/// Makes an empty space.
///
/// @param options  copied; NULL: the defaults
/// @param out      receives the space; destroyed by pervma_space_destroy
/// @return PERVMA_OK; PERVMA_EINVALID when the granularity is no power of two, or something
///         reserved is not zero; PERVMA_EHANDLE of the slab; PERVMA_EBUSY_OWN, _EIN_HANDLER. Aborts
///         when no memory is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_space_create(
    options: *const SpaceOptions,
    out: *mut *mut Space,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        let (mut granularity, mut slab, mut callbacks) = (4096, null_mut(), None);
        if !options.is_null() {
            // SAFETY: the caller's pointer.
            let options = unsafe { given(options) }?;
            if options.granularity != 0 {
                granularity = options.granularity;
            }
            if !granularity.is_power_of_two() || options.reserved != [0; 4] {
                let about = "the granularity is no power of two, or what is reserved is not zero";
                return Err(fail(Status::Invalid, &about));
            }
            slab = options.slab;
            let SpaceOptions { destroy, split, merge, context, .. } = *options;
            callbacks = Some(Callbacks { destroy, split, merge, context }).filter(Callbacks::any);
        }
        let slab = if slab.is_null() {
            None
        } else {
            // SAFETY: the caller's handle.
            Some(unsafe { get::<SlabData>(slab) }?)
        };
        let space = match slab {
            None => AddressSpace::with_platform(granularity),
            Some(data) => {
                // RELAXED: a number.
                data.spaces.fetch_add(1, Relaxed);
                AddressSpace::new_in(granularity, Arc::clone(&data.slab))
            }
        };
        let edit = OpenEdit {
            thread: AtomicUsize::new(0),
            is_used: Cell::new(false),
            edit: UnsafeCell::new(None),
        };
        let dependents = AtomicUsize::new(0);
        let slot =
            make_in_slot(SpaceData { space: Arc::new(space), callbacks, dependents, edit, slab });
        registry().spaces.push(slot);
        out.set(std::ptr::from_ref(slot).cast_mut().cast());
        Ok(())
    })
}

/// Destroys a space. Everything is unmapped first, and each payload destroyed. No other call on the
/// space may be under way or follow; one that follows is PERVMA_EHANDLE, as long as few other
/// spaces were destroyed since.
///
/// @return PERVMA_OK; PERVMA_EIN_USE when a guard of it is held by any thread, or a registered
///         reader, an exclusion or a reservation of it is left, and then nothing has changed;
///         PERVMA_EBUSY_OWN in an edit of this thread; PERVMA_EGUARD when this thread has a guard;
///         PERVMA_EIN_HANDLER, PERVMA_EHANDLE, PERVMA_EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_space_destroy(space: *mut Space) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle, which no other call uses.
        let data = unsafe { get::<SpaceData>(space) }?;
        // RELAXED: a number that no other thread changes now.
        if data.dependents.load(Relaxed) != 0 {
            let about = "a registered reader, an exclusion or a reservation of the space is left";
            return Err(fail(Status::InUse, &about));
        }
        let mut removed = RemovedVmas::default();
        match data.space.exclude(data.space.everything()) {
            Ok(exclusion) if exclusion.is_drained() => {
                removed = exclusion.remove_whole().map_err(failed)?;
            }
            Ok(_) => return Err(fail(Status::InUse, &"a guard in the space is held")),
            // In a child of fork: another thread was about to count it.
            Err(ChangeError::Reserved { .. }) => {
                return Err(fail(Status::InUse, &"a reservation of the space is left"));
            }
            // Of an abandoned space nothing is destroyed.
            Err(ChangeError::NotMapped { .. } | ChangeError::Forked) => {}
            Err(error) => return Err(failed(error)),
        }
        // SAFETY: as above.
        let slot = unsafe { slot::<SpaceData>(space) }?;
        registry().spaces.retain(|other| !std::ptr::eq(*other, slot));
        // SAFETY: nothing of the space is kept: what could be was looked for.
        let data = unsafe { take::<SpaceData>(space) }?;
        if let Some(slab) = data.slab {
            // RELAXED: a number.
            slab.spaces.fetch_sub(1, Relaxed);
        }
        drop(data);
        drop(removed);
        Ok(())
    })
}

/// How many VMAs there are, those of an edit that is under way included. 0 for a handle that is not
/// a live one.
///
/// Takes no lock; safe in signal handlers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_count(space: *const Space) -> size_t {
    // SAFETY: the caller's handle.
    unsafe { get::<SpaceData>(space) }.map_or(0, |data| data.space.len())
}

/// Begins an edit: waits until no other thread edits the space. Until pervma_edit_end, calls of
/// this thread on the space are part of the edit; other threads see all of it at once, at its end.
/// Threads that read what it does not touch go on; what changes a VMA waits for its readers, with
/// the edit open. Outside of an edit each change is an edit of its own, and waits before it.
///
/// Like a mutex, it belongs to the thread, and does not nest.
///
/// @return PERVMA_OK; PERVMA_EBUSY_OWN when this thread edits the space; PERVMA_EGUARD when it has
///         a guard in it; PERVMA_EFORKED, PERVMA_EIN_HANDLER, PERVMA_EHANDLE, PERVMA_EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_edit_begin(space: *mut Space) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        data.edit.open(data.kept().edit().map_err(failed)?);
        Ok(())
    })
}

/// As pervma_edit_begin, and waits for a limited time. Changes of the edit wait for readers as long
/// as it takes.
///
/// @param timeout_ns  at most so long; 0: tries once
/// @return as pervma_edit_begin; PERVMA_ETIMED_OUT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_edit_begin_timed(space: *mut Space, timeout_ns: u64) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let edit = match deadline(timeout_ns) {
            None => data.kept().edit().map(Some),
            Some(deadline) => data.kept().edit_until(deadline),
        };
        data.edit.open(edit.map_err(failed)?.ok_or(Status::TimedOut)?);
        Ok(())
    })
}

/// As pervma_edit_begin_timed, and waits until no other thread excludes a VMA that touches a range:
/// no change of this range is refused with PERVMA_EEXCLUDED then. Waits for no reader.
///
/// @param timeout_ns  at most so long; 0: tries once; UINT64_MAX: as long as it takes
/// @return as pervma_edit_begin; PERVMA_ETIMED_OUT; PERVMA_EBUSY_OWN when this thread has an
///         exclusion in the space; of the range PERVMA_EUNALIGNED, _EEMPTY, _EOVERFLOW
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_edit_begin_range(
    space: *mut Space,
    start: usize,
    end: usize,
    timeout_ns: u64,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let edit = match deadline(timeout_ns) {
            None => data.kept().edit_range(start..end).map(Some),
            Some(deadline) => data.kept().edit_range_until(start..end, deadline),
        };
        data.edit.open(edit.map_err(failed)?.ok_or(Status::TimedOut)?);
        Ok(())
    })
}

/// The end of a time that begins now; none of [`u64::MAX`].
pub(crate) fn deadline(timeout_ns: u64) -> Option<Instant> {
    let timeout = Some(timeout_ns).filter(|limited| *limited != u64::MAX)?;
    Instant::now().checked_add(Duration::from_nanos(timeout))
}

/// Ends the edit of this thread: what it has changed is seen by all, and no lock is held any more.
/// Payloads that it has split or merged away are destroyed then.
///
/// @return PERVMA_OK; PERVMA_ETHREAD when this thread has no edit of the space open;
///         PERVMA_EBUSY_OWN in a callback of that edit; PERVMA_EHANDLE, PERVMA_EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_edit_end(space: *mut Space) -> Status {
    call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        if !data.edit.is_mine() {
            return Err(fail(Status::Thread, &"this thread has no edit of the space open"));
        }
        let used = data.edit.enter()?;
        // SAFETY: this thread has the edit, and no other call of it uses it.
        let edit = unsafe { (*data.edit.edit.get()).take() };
        // RELAXED: as where it was stored.
        data.edit.thread.store(0, Relaxed);
        drop(used);
        drop(edit);
        Ok(())
    })
}

/// Maps a range, if nothing is there. Merges nothing.
///
/// @param payload  the space's from now on; the caller's if the call fails
/// @return PERVMA_OK; PERVMA_EOVERLAP; of the range PERVMA_EUNALIGNED, _EEMPTY, _EOVERFLOW; in an
///         edit PERVMA_EEXCLUDED; PERVMA_EGUARD, _EBUSY_OWN, _ENO_MEMORY, _EFORKED, _EIN_HANDLER,
///         _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_insert(
    space: *mut Space,
    start: usize,
    end: usize,
    payload: u64,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let (range, word) = (start..end, data.word(payload));
        let inserted = data.with_edit_or_back(
            word,
            |edit, word| edit.insert(range.clone(), word),
            |space, word| space.insert(range.clone(), word),
        )?;
        inserted.map_err(refused)
    })
}

/// As pervma_insert, and merges the VMA with those that touch it (pervma_merge_fn). One that has
/// readers stays as it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_insert_merging(
    space: *mut Space,
    start: usize,
    end: usize,
    payload: u64,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let (range, word) = (start..end, data.word(payload));
        let inserted = data.with_edit_or_back(
            word,
            |edit, word| edit.insert_merging(range.clone(), word),
            |space, word| space.insert_merging(range.clone(), word),
        )?;
        inserted.map_err(refused)
    })
}

/// Maps a range in the place of whatever is mapped there, and merges the VMA with those that touch
/// it, as far as pervma_merge_fn agrees and they have no readers: MAP_FIXED for attributes. Waits
/// for readers of what it replaces.
///
/// @param on_removed  told of what was there; may be NULL
/// @return as pervma_insert, but for PERVMA_EOVERLAP, which is of reservations only; PERVMA_EPARTLY
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_set(
    space: *mut Space,
    start: usize,
    end: usize,
    payload: u64,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let (range, word) = (start..end, data.word(payload));
        let set = data.with_edit_or_back(
            word,
            |edit, word| edit.set(range.clone(), word),
            |space, word| space.set(range.clone(), word),
        )?;
        tell(set.map_err(refused)?, on_removed, context);
        Ok(())
    })
}

/// As pervma_set, and merges nothing: the new VMA is the range, and no other's identity goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_replace(
    space: *mut Space,
    start: usize,
    end: usize,
    payload: u64,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let (range, word) = (start..end, data.word(payload));
        let replaced = data.with_edit_or_back(
            word,
            |edit, word| edit.replace(range.clone(), word),
            |space, word| space.replace(range.clone(), word),
        )?;
        tell(replaced.map_err(refused)?, on_removed, context);
        Ok(())
    })
}

/// Unmaps every byte of a range. VMAs that reach beyond it are split (pervma_split_fn). Waits for
/// their readers, and for no others; outside of an edit it holds no lock meanwhile.
///
/// @param on_removed  told of what was there; may be NULL
/// @return PERVMA_OK; PERVMA_ENOT_MAPPED when nothing is mapped in the range; PERVMA_ERESERVED;
///         PERVMA_EPARTLY; else as pervma_insert
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_remove(
    space: *mut Space,
    start: usize,
    end: usize,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let range = start..end;
        data.change(
            |edit| edit.remove(range.clone()),
            |space| space.remove(range.clone()),
            on_removed,
            context,
        )
    })
}

/// Changes or unmaps every part of a range that is mapped, as `change` says; holes are passed over.
/// VMAs that reach beyond the range are split, and afterwards parts and neighbours are merged, as
/// far as the rules agree and the neighbours have no readers. Waits as pervma_remove does. All of
/// it happens, or nothing.
///
/// @param rules       how this change splits and merges; NULL: as the space does
/// @param change      called for each part, in order of address; not NULL
/// @param on_removed  told of what was there, changed parts included; may be NULL
/// @param context     the first argument of `change` and `on_removed`
/// @return as pervma_remove; PERVMA_EGIVEN_UP when `change` has failed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_change(
    space: *mut Space,
    start: usize,
    end: usize,
    rules: *const Rules,
    change: Change,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let of_space = Rules { split: None, merge: None, context: null_mut() };
        // SAFETY: the caller's pointer.
        let rules = if rules.is_null() { &of_space } else { unsafe { given(rules) }? };
        if change.is_none() {
            return Err(no_callback());
        }
        let place = |part: Range<usize>, word: &Word| {
            let (changed, stays) = word.changed(change, context, &part);
            stays.then_some(changed)
        };
        let range = start..end;
        data.change(
            |edit| edit.change(range.clone(), rules, place),
            |space| space.change(range.clone(), rules, place),
            on_removed,
            context,
        )
    })
}

/// Moves everything between `start` and `end` so that it starts at `to`, holes included. VMAs that
/// reach beyond the range are split, the moved ones merged with what they touch. Waits as
/// pervma_remove does.
///
/// @param change      what becomes of the payload of each part, given its new addresses; 0 is taken
///                    for 1. NULL: it stays
/// @param on_removed  told of what was there, at the old addresses; may be NULL
/// @return as pervma_remove; PERVMA_EOVERLAP when something is where it would move to;
///         PERVMA_EGIVEN_UP
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_relocate(
    space: *mut Space,
    start: usize,
    end: usize,
    to: usize,
    change: Change,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let moved = |part: Range<usize>, word: &Word| word.changed(change, context, &part).0;
        let from = start..end;
        data.change(
            |edit| edit.relocate(from.clone(), to, moved),
            |space| space.relocate(from.clone(), to, moved),
            on_removed,
            context,
        )
    })
}

/// Changes the payload of every part of a range, all of which must be mapped; otherwise as
/// pervma_change with the space's rules. 0 of `change` is taken for 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_update(
    space: *mut Space,
    start: usize,
    end: usize,
    change: Change,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        if change.is_none() {
            return Err(no_callback());
        }
        let changed = |part: Range<usize>, word: &Word| word.changed(change, context, &part).0;
        let range = start..end;
        data.change(
            |edit| edit.update(range.clone(), changed),
            |space| space.update(range.clone(), changed),
            on_removed,
            context,
        )
    })
}

pub(crate) fn no_callback() -> Status {
    fail(Status::Invalid, &"a callback is NULL")
}

/// Finds a gap: a range in which nothing is mapped or reserved. Outside of an edit another thread
/// may take it before the call returns: search, and reserve or insert, in one edit.
///
/// @param out  receives its start
/// @return PERVMA_OK; PERVMA_ENO_GAP; PERVMA_EINVALID when the size or the alignment is impossible;
///         PERVMA_EGUARD, _EBUSY_OWN, _EFORKED, _EIN_HANDLER, _EHANDLE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_find_gap(
    space: *mut Space,
    gap: *const Gap,
    out: *mut usize,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointers.
        let (gap, out) = (unsafe { given(gap) }?, unsafe { Out::new(out) }?);
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let high = if gap.high == 0 { usize::MAX } else { gap.high };
        let align = if gap.align == 0 { 1 } else { gap.align };
        let mut search = GapSearch::new(gap.size).aligned(align).within(gap.low..high);
        if gap.top_down != 0 {
            search = search.top_down();
        }
        let found = data.with_edit(
            |edit| edit.find_gap(&search).map_err(failed),
            |space| space.view().map_err(failed)?.find_gap(&search).map_err(failed),
        )??;
        out.set(found.start);
        Ok(())
    })
}

/// Copies out the first VMA that ends above `addr`: to go on, ask for its `end`. Waits for a thread
/// that is changing it.
///
/// @return PERVMA_OK; PERVMA_ENOT_MAPPED when there is none; PERVMA_ELIMIT, _EGUARD, _EBUSY_OWN,
///         _EFORKED, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_next(space: *mut Space, addr: usize, out: *mut Vma) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let found = data.with_edit(
            |edit| Ok(edit.overlapping(addr..usize::MAX).next().map(shown)),
            |space| match space.read_at_or_after(addr) {
                Ok(found) => Ok(found.map(|vma| shown((vma.range(), &*vma)))),
                Err(error) => Err(failed(error)),
            },
        )??;
        out.set(found.ok_or(Status::NotMapped)?);
        Ok(())
    })
}

/// Copies out the last VMA that starts below `addr`: to go on backwards, ask for its `start`; to
/// begin at the end, for UINTPTR_MAX. Waits until no thread edits.
///
/// @return as pervma_next
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_prev(space: *mut Space, addr: usize, out: *mut Vma) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let found = data.with_edit(
            |edit| Ok(edit.overlapping(0..addr).next_back().map(shown)),
            |space| {
                let view = space.view().map_err(failed)?;
                Ok(view.overlapping(0..addr).next_back().map(shown))
            },
        )??;
        out.set(found.ok_or(Status::NotMapped)?);
        Ok(())
    })
}

fn shown((range, word): (Range<usize>, &Word)) -> Vma {
    Vma { start: range.start, end: range.end, payload: word.value }
}

/// Shows the VMAs that overlap a range, all as they are at one moment: in order of address, or
/// backwards. Other threads cannot edit meanwhile; lookups go on.
///
/// @param backwards  non-zero: the last one first
/// @param show       called for each, UNDER THE LOCK OF THE SPACE; not NULL
/// @return PERVMA_OK, also when `show` has stopped it; PERVMA_EGUARD, _EBUSY_OWN, _EFORKED,
///         _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_for_each(
    space: *mut Space,
    start: usize,
    end: usize,
    backwards: c_int,
    show: Show,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let show = show.ok_or_else(no_callback)?;
        let goes_on = |vma: (Range<usize>, &Word)| {
            let vma = shown(vma);
            // SAFETY: a function of the caller's, called as its type says.
            callback(|| unsafe { show(context, &raw const vma) }) != 0
        };
        let show_all = |vmas: &address_space::Vmas<'_, Word, Host>| {
            let mut vmas = vmas.overlapping(start..end);
            if backwards != 0 { vmas.rev().all(goes_on) } else { vmas.all(goes_on) }
        };
        data.with_edit(
            |edit| Ok(show_all(edit)),
            |space| Ok(show_all(&*space.view().map_err(failed)?)),
        )?
        .map(drop)
    })
}

impl SpaceData {
    /// As [`with_edit`](Self::with_edit), of what takes a payload, which the caller keeps if the
    /// edit cannot be used.
    fn with_edit_or_back<R>(
        &self,
        word: Word,
        edited: impl FnOnce(&mut Edit<'static, Word, Host>, Word) -> R,
        alone: impl FnOnce(&'static Words, Word) -> R,
    ) -> Result<R, Status> {
        let word = Cell::new(Some(word));
        let taken = || word.take().unwrap_or_else(|| unreachable!("one of the two runs, once"));
        let result = self.with_edit(|edit| edited(edit, taken()), |space| alone(space, taken()));
        if let Some(word) = word.take() {
            word.give_back();
        }
        result
    }
}
