//! Lookups: copies of VMAs, guards that keep one as it is, and registered readers.
#![expect(unsafe_code, reason = "exports functions, and keeps guards in memory of the caller")]

use std::cell::Cell;
use std::mem::{MaybeUninit, align_of, size_of};

use address_space::{HandlerScope, OwnedReadGuard, ReadError, ReadGuard, Reader, VmaId, VmaOrHole};

use crate::boundary::{Out, call, given, waiting_call};
use crate::fork;
use crate::handles::{Kind, Object, get, make, take};
use crate::payload::Word;
use crate::space::{Space, SpaceData, Vma};
use crate::status::{Code, Status, fail, failed};
use crate::thread::{self, Host};

/// A read-locked VMA: until pervma_read_end nobody changes it, and its payload stays. It lies where
/// the caller wants it, on the stack as a rule, and must not be copied or moved: a copy is not a
/// guard. Read the first three fields, and leave the others alone.
#[repr(C)]
#[derive(Debug)]
pub struct Guard {
    /// The VMA's first address.
    pub start: usize,
    /// The address behind its last.
    pub end: usize,
    /// Its payload.
    pub payload: u64,
    /// Not for use.
    pub mark: usize,
    /// Not for use.
    pub thread: usize,
    /// Not for use.
    pub forks: usize,
    /// Not for use.
    pub opaque: [usize; 10],
}

/// A thread that is registered as a reader of a space: its lookups count in no VMA, so threads that
/// read the same VMA do not take turns at a cache line. Changes of the space take longer for it.
#[derive(Debug)]
pub struct RegisteredReader(());

/// What is in a [`Guard`].
enum Held {
    Counted(ReadGuard<'static, Word, Host>),
    Registered(ReadGuard<'static, Word, Host>, &'static ReaderData),
    Owned(OwnedReadGuard<Word, Host>),
}

/// A [`Guard`], as it is seen here.
#[repr(C)]
struct Live {
    start: usize,
    end: usize,
    payload: u64,
    mark: usize,
    thread: usize,
    forks: usize,
    /// There as long as the mark is.
    held: MaybeUninit<Held>,
}

const _: () = assert!(
    size_of::<Live>() <= size_of::<Guard>() && align_of::<Live>() <= align_of::<Guard>(),
    "a guard has no room for what it holds"
);

/// What is behind a [`RegisteredReader`].
pub(crate) struct ReaderData {
    reader: Reader<'static, Word, Host>,
    space: &'static SpaceData,
    thread: usize,
    guards: Cell<u32>,
}

impl Object for ReaderData {
    const KIND: Kind = Kind::Reader;
    type Handle = RegisteredReader;
}

/// Names one VMA among all that ever were in this process (pervma_guard_id). The same words are the
/// same VMA, and no others are.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Id {
    /// Compared only.
    pub words: [u64; 4],
}

/// What a live guard at an address has as its mark.
fn mark(guard: *const Guard) -> usize {
    guard.addr() ^ 0x7265_6164
}

#[inline(always)]
fn begin(out: &Out<Guard>, found: Result<Held, ReadError>) -> Result<(), Status> {
    let held = found.map_err(|error| error.code())?;
    let (range, payload, owner) = match &held {
        Held::Counted(vma) => (vma.range(), vma.value, thread::name()),
        Held::Registered(vma, reader) => {
            reader.guards.set(reader.guards.get() + 1);
            (vma.range(), vma.value, thread::name())
        }
        Held::Owned(vma) => (vma.range(), vma.value, 0),
    };
    let live = Live {
        start: range.start,
        end: range.end,
        payload,
        mark: mark(out.as_ptr()),
        thread: owner,
        forks: fork::forks(),
        held: MaybeUninit::new(held),
    };
    // SAFETY: it may be written, and has room, suitably aligned, as asserted above.
    unsafe { out.as_ptr().cast::<Live>().write(live) };
    Ok(())
}

/// Finds and read-locks the VMA that holds an address. Never waits, takes no lock, allocates
/// nothing, ends after a bounded number of steps.
///
/// SAFE IN SIGNAL HANDLERS, also in one that has interrupted a call of this library on its thread.
/// What a handler of SIGSEGV does:
///
///   PERVMA_OK           look at the guard, end it, return
///   PERVMA_ENOT_MAPPED  the fault is the program's: it was a hole
///   PERVMA_ERESERVED    as that, or what the reservation is for
///   PERVMA_EBUSY        another thread is changing the place: return, so that the access is made
///                       again and faults again. Bound that by time, not by number: the other
///                       thread may hold the range for long
///   PERVMA_EBUSY_OWN    this thread itself is changing the place, in the code that the signal has
///                       interrupted: returning to it does not help. Defer the work until that is
///                       done, or treat it as a bug
///
/// A VMA that this thread's edit has not locked is found in its handlers too.
///
/// @param out  receives the guard; unchanged if the call fails
/// @return as above; PERVMA_ELIMIT, _EFORKED, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_read_begin(
    space: *const Space,
    addr: usize,
    out: *mut Guard,
) -> Status {
    call(|| {
        // SAFETY: the caller's pointer.
        let place = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        begin(&place, data.kept().try_read(addr).map(Held::Counted))
    })
}

/// As pervma_read_begin, and waits for a thread that is changing the place. Not for signal
/// handlers.
///
/// @return PERVMA_OK, _ENOT_MAPPED, _ERESERVED, _ELIMIT, _EFORKED, _EHANDLE, _EINVALID; where this
///         thread would wait for itself PERVMA_EBUSY_OWN, _EGUARD; PERVMA_EIN_HANDLER
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_read_begin_wait(
    space: *const Space,
    addr: usize,
    out: *mut Guard,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let place = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        begin(&place, data.kept().read(addr).map(Held::Counted))
    })
}

/// As pervma_read_begin_wait, for a guard that any thread may end. It is in no thread's record: a
/// thread that waits for its own is told of nothing, and waits for ever.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_read_begin_shared(
    space: *const Space,
    addr: usize,
    out: *mut Guard,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let place = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        begin(&place, data.space.read_owned(addr).map(Held::Owned))
    })
}

/// Ends a guard, on the thread that began it, but for those of pervma_read_begin_shared. Wakes a
/// thread that waits for it.
///
/// SAFE IN SIGNAL HANDLERS, in those that began the guard.
///
/// @return PERVMA_OK; PERVMA_EHANDLE when it is no live guard: it was ended before, or is a copy;
///         PERVMA_ETHREAD when it is another thread's; PERVMA_EFORKED when it was begun before this
///         process was forked; PERVMA_EINVALID. The guard is as it was then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_read_end(guard: *mut Guard) -> Status {
    call(|| {
        // SAFETY: the caller's pointer.
        unsafe { Out::new(guard) }?;
        // SAFETY: it is neither null nor unaligned; the caller vouches for the rest.
        let live = unsafe { &mut *guard.cast::<Live>() };
        if live.mark != mark(guard) {
            return Err(fail(Status::Handle, &"no live guard is there"));
        }
        if live.forks != fork::forks() {
            return Err(fail(Status::Forked, &"the guard was begun before the fork"));
        }
        if live.thread != 0 && live.thread != thread::name() {
            return Err(fail(Status::Thread, &"the guard is another thread's"));
        }
        live.mark = 0;
        // SAFETY: the mark has said that it was written, at this place.
        let held = unsafe { live.held.assume_init_ref() };
        if let Held::Registered(_, reader) = held {
            reader.guards.set(reader.guards.get() - 1);
        }
        // SAFETY: as above; the mark is gone, so this is done once. In place: a processor waits for
        // what it has just stored in parts and is to load as a whole.
        unsafe { live.held.assume_init_drop() };
        Ok(())
    })
}

/// Names the VMA that a guard has, for pervma_read_begin_id. A name is valid as long as its VMA is
/// mapped, and never given twice: an address does not prove that it is the same VMA. A VMA that is
/// updated keeps its name, and of one that is split the part that has its start; one that is merged
/// into the VMA before it, replaced or moved is gone.
///
/// SAFE IN SIGNAL HANDLERS.
///
/// @return PERVMA_OK; PERVMA_EHANDLE when it is no live guard; PERVMA_EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_guard_id(guard: *const Guard, out: *mut Id) -> Status {
    call(|| {
        // SAFETY: the caller's pointers.
        let (live, out) = (unsafe { given(guard) }?, unsafe { Out::new(out) }?);
        if live.mark != mark(guard) {
            return Err(fail(Status::Handle, &"no live guard is there"));
        }
        // SAFETY: there is room, as asserted above.
        let live = unsafe { &*guard.cast::<Live>() };
        // SAFETY: the mark says that it was written, at this place, and not ended.
        let held = unsafe { live.held.assume_init_ref() };
        let id = match held {
            Held::Counted(vma) | Held::Registered(vma, _) => vma.id(),
            Held::Owned(vma) => vma.id(),
        };
        out.set(Id { words: id.to_words() });
        Ok(())
    })
}

/// As pervma_read_begin, of the VMA that was given a name, wherever it ends now.
///
/// SAFE IN SIGNAL HANDLERS.
///
/// @return as pervma_read_begin; PERVMA_ENOT_MAPPED when that VMA is gone, whatever is there now
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_read_begin_id(
    space: *const Space,
    id: *const Id,
    out: *mut Guard,
) -> Status {
    call(|| {
        // SAFETY: the caller's pointers.
        let (id, place) = (unsafe { given(id) }?, unsafe { Out::new(out) }?);
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let found = data.kept().try_read_id(VmaId::from_words(id.words));
        begin(&place, found.map(Held::Counted))
    })
}

fn copy_out(
    found: Result<VmaOrHole<'_, Word, Host>, ReadError>,
    addr: usize,
    out: &Out<Vma>,
) -> Status {
    match found {
        Ok(VmaOrHole::Vma(vma)) => {
            let range = vma.range();
            out.set(Vma { start: range.start, end: range.end, payload: vma.value });
            Status::Ok
        }
        Ok(VmaOrHole::Hole { end }) => {
            out.set(Vma { start: addr, end, payload: 0 });
            Status::NotMapped
        }
        Err(error) => error.code(),
    }
}

/// Copies out the VMA that holds an address; or of a hole, where it ends. As pervma_read_begin, and
/// the guard ends in the call.
///
/// SAFE IN SIGNAL HANDLERS; what they do on each code: see pervma_read_begin.
///
/// @param out  receives the VMA. With PERVMA_ENOT_MAPPED: `start` is `addr`, `end` the start of the
///             next VMA, UINTPTR_MAX if there is none; parts of that may be reserved. With other
///             codes unchanged
/// @return as pervma_read_begin, but for PERVMA_ERESERVED: what is reserved is part of a hole.
///         PERVMA_EBUSY also while the VMA behind a hole is being changed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_lookup(space: *const Space, addr: usize, out: *mut Vma) -> Status {
    call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        // Found, as a rule: with fewer steps.
        if let Ok(vma) = data.space.try_read(addr) {
            let range = vma.range();
            out.set(Vma { start: range.start, end: range.end, payload: vma.value });
            return Ok(());
        }
        copy_out(data.space.try_read_or_hole(addr), addr, &out).as_result()
    })
}

/// As pervma_lookup, and waits for a thread that is changing the place. Not for signal handlers. In
/// an edit of this thread it looks at what the edit has made.
///
/// @return as pervma_read_begin_wait, but for PERVMA_ERESERVED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_lookup_wait(
    space: *const Space,
    addr: usize,
    out: *mut Vma,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let status = data.with_edit(
            |edit| {
                let (vma, status) = match edit.overlapping(addr..usize::MAX).next() {
                    Some((range, word)) if range.start <= addr => {
                        let Word { value: payload, .. } = *word;
                        (Vma { start: range.start, end: range.end, payload }, Status::Ok)
                    }
                    next => {
                        let end = next.map_or(usize::MAX, |(range, _)| range.start);
                        (Vma { start: addr, end, payload: 0 }, Status::NotMapped)
                    }
                };
                out.set(vma);
                status
            },
            |space| copy_out(space.read_or_hole(addr), addr, &out),
        )?;
        status.as_result()
    })
}

/// Registers the running thread as a reader of a space (pervma_reader_read_begin). May wait.
///
/// @param out  receives the reader, which belongs to this thread; ended by pervma_reader_unregister
/// @return PERVMA_OK; PERVMA_ENO_MEMORY; PERVMA_EBUSY_OWN, _EGUARD, _EFORKED, _EIN_HANDLER,
///         _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_reader_register(
    space: *mut Space,
    out: *mut *mut RegisteredReader,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let reader = data.kept().register().map_err(failed)?;
        data.count_dependent();
        let guards = Cell::new(0);
        out.set(make(ReaderData { reader, space: data, thread: thread::name(), guards }));
        Ok(())
    })
}

/// The reader of a handle, of this thread.
///
/// # Safety
///
/// As for [`get`].
unsafe fn mine(reader: *const RegisteredReader) -> Result<&'static ReaderData, Status> {
    // SAFETY: as the caller says.
    let data = unsafe { get::<ReaderData>(reader) }?;
    if data.thread == thread::name() {
        Ok(data)
    } else {
        Err(fail(Status::Thread, &"the reader is another thread's"))
    }
}

/// Ends a registration, on its thread.
///
/// @return PERVMA_OK; PERVMA_EIN_USE when it has guards; PERVMA_ETHREAD, _EBUSY_OWN, _EIN_HANDLER,
///         _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_reader_unregister(reader: *mut RegisteredReader) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { mine(reader) }?;
        if data.guards.get() != 0 {
            return Err(fail(Status::InUse, &"the reader has guards"));
        }
        // SAFETY: this thread has it, and no guard of it is left.
        let data = unsafe { take::<ReaderData>(reader) }?;
        let space = data.space;
        drop(data);
        space.forget_dependent();
        Ok(())
    })
}

/// As pervma_read_begin, by a registered reader, on its thread. SAFE IN SIGNAL HANDLERS: a guard
/// that is begun there must be ended there.
///
/// @return as pervma_read_begin; PERVMA_ETHREAD
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_reader_read_begin(
    reader: *const RegisteredReader,
    addr: usize,
    out: *mut Guard,
) -> Status {
    call(|| {
        // SAFETY: the caller's pointer.
        let place = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { mine(reader) }?;
        let found = data.reader.try_read(addr);
        begin(&place, found.map(|guard| Held::Registered(guard, data)))
    })
}

/// As pervma_lookup, by a registered reader, on its thread. SAFE IN SIGNAL HANDLERS.
///
/// @return as pervma_lookup; PERVMA_ETHREAD
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_reader_lookup(
    reader: *const RegisteredReader,
    addr: usize,
    out: *mut Vma,
) -> Status {
    call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { mine(reader) }?;
        copy_out(data.reader.try_read_or_hole(addr), addr, &out).as_result()
    })
}

/// Marks the running thread as being in a signal handler, until pervma_handler_leave: functions
/// that may wait return PERVMA_EIN_HANDLER, in place of a deadlock now and then. Optional. Nests.
///
/// Safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_handler_enter() {
    std::mem::forget(HandlerScope::<Host>::enter());
}

/// Ends what pervma_handler_enter has begun. Without that it does nothing.
///
/// Safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_handler_leave() {
    if HandlerScope::<Host>::active() {
        let scope = MaybeUninit::<HandlerScope<Host>>::uninit();
        const { assert!(size_of::<HandlerScope<Host>>() == 0) };
        // SAFETY: it has no bytes, and the thread is in one that was forgotten.
        drop(unsafe { scope.assume_init() });
    }
}
