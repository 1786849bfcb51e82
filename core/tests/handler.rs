//! What a reader does in a signal handler: it takes no lock and allocates nothing.
//!
//! The allocator of this program and the locks of its platform end the process inside a marked
//! handler. Children show that both would.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::array;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Instant;

use common::{Calls, Delegate, Watched, assert_outside_of_handlers, watchdog};
use pervma::lock_api::RawRwLock;
use pervma::{
    AddressSpace, Cursor, HandlerScope, OwnedReadGuard, Payload, Platform, ReadError, ReadGuard,
    Reader, ReaderCursor, StdPlatform, VmaId, VmaOrHole,
};

/// Ends the process when memory is asked for, or given back, inside a marked handler.
struct NotInHandlers;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for NotInHandlers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert_outside_of_handlers();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        assert_outside_of_handlers();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: NotInHandlers = NotInHandlers;

enum Handled {}

static CALLS: Calls = Calls::none();

/// Held by a test that looks at what the last call was.
static ALONE: Mutex<()> = Mutex::new(());

impl Watched for Handled {
    fn calls() -> &'static Calls {
        &CALLS
    }
}

type Host = Delegate<Handled>;
type Space = AddressSpace<Text, Host>;

/// A payload with memory of its own.
struct Text(String);

impl Text {
    fn at(start: usize) -> Self {
        Self(format!("{PAYLOAD}{start:#x}"))
    }

    fn is_whole(&self) -> bool {
        self.0.starts_with(PAYLOAD)
    }
}

impl Payload for Text {}

const PAGE: usize = 0x1000;

/// Each VMA and each reservation, one page long. Nothing touches another, and nothing lies above.
const FOUND: usize = 0x1_0000;
const GONE: usize = 0x2_0000;
const RESERVED: usize = 0x3_0000;
const CHANGED: usize = 0x4_0000;
const BUSY: usize = 0x5_0000;
const LAST: usize = 0x6_0000;
/// Where nothing is: below a VMA, and above all.
const HOLE: usize = 0x4_8000;
const ABOVE: usize = 0x7_0000;

/// What the payload of each VMA begins with.
const PAYLOAD: &str = "at ";

fn page(start: usize) -> Range<usize> {
    start..start + PAGE
}

/// A space with all of them mapped, except the reserved ones.
fn space() -> Arc<Space> {
    let space = Arc::new(Space::with_platform(PAGE));
    for start in [FOUND, GONE, CHANGED, BUSY, LAST] {
        space.insert(page(start), Text::at(start)).unwrap();
    }
    space
}

/// The result of a lookup.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Outcome {
    /// The VMA that starts here.
    Found(usize),
    /// There is no VMA above.
    None,
    Error(ReadError),
}

use Outcome::{Error, Found, None as Nothing};

/// Uses a guard in every way, and drops it.
fn read(found: Result<ReadGuard<'_, Text, Host>, ReadError>) -> Outcome {
    match found {
        Ok(vma) => {
            let (range, id, version) = (vma.range(), vma.id(), vma.version());
            let whole = vma.is_whole();
            let part = ReadGuard::map(vma, |text| text.0.as_str());
            let right = whole && part.starts_with(PAYLOAD) && part.range() == range;
            let right = right && range.len() == PAGE && version.id() == id;
            if right { Found(range.start) } else { Nothing }
        }
        Err(error) => Error(error),
    }
}

fn read_owned(found: Result<OwnedReadGuard<Text, Host>, ReadError>) -> Outcome {
    match found {
        Ok(vma) if vma.is_whole() && vma.version().id() == vma.id() => Found(vma.range().start),
        Ok(_) => Nothing,
        Err(error) => Error(error),
    }
}

fn read_next(found: Result<Option<ReadGuard<'_, Text, Host>>, ReadError>) -> Outcome {
    found.transpose().map_or(Nothing, read)
}

fn read_either(found: Result<VmaOrHole<'_, Text, Host>, ReadError>) -> Outcome {
    match found {
        Ok(VmaOrHole::Vma(vma)) => read(Ok(vma)),
        Ok(VmaOrHole::Hole { end: usize::MAX }) => Nothing,
        Ok(VmaOrHole::Hole { end }) => Found(end),
        Err(error) => Error(error),
    }
}

/// The registered readers of the thread that is interrupted.
struct Readers<'s> {
    reader: Reader<'s, Text, Host>,
    /// This one holds as many guards as it can publish, so that more of them are counted.
    full: Reader<'s, Text, Host>,
}

impl<'s> Readers<'s> {
    fn register(space: &'s Space) -> Self {
        Self { reader: space.register().unwrap(), full: space.register().unwrap() }
    }
}

/// Guards that one reader can publish.
const PUBLISHED: usize = 4;

/// What a handler can have been given before it interrupts its thread.
struct Tools<'a> {
    space: &'a Arc<Space>,
    readers: &'a Readers<'a>,
    /// These have found the VMA before, if there was one.
    cursor: Cursor<'a, Text, Host>,
    reader_cursor: ReaderCursor<'a, Text, Host>,
    addr: usize,
    id: VmaId,
}

/// What a lookup looks for.
#[derive(Clone, Copy, PartialEq)]
enum For {
    Address,
    /// The first VMA that ends above an address.
    Next,
    /// The one at an address, or where nothing is mapped, the next.
    Either,
    Identity,
}

use For::{Address, Either, Identity, Next};

/// A way to look up.
struct Entry {
    name: &'static str,
    looks_for: For,
    /// It does not count itself in the VMA.
    publishes: bool,
    /// It would wait where others say that they would have to.
    waits: bool,
    look: fn(&mut Tools<'_>) -> Outcome,
}

const fn entry(name: &'static str, looks_for: For, look: fn(&mut Tools<'_>) -> Outcome) -> Entry {
    Entry { name, looks_for, publishes: false, waits: false, look }
}

impl Entry {
    const fn publishes(self) -> Self {
        Self { publishes: true, ..self }
    }

    const fn waits(self) -> Self {
        Self { waits: true, ..self }
    }
}

/// All of them.
const ENTRIES: [Entry; 29] = [
    entry("try_read", Address, |at| read(at.space.try_read(at.addr))),
    entry("try_read_with_walks", Address, |at| {
        read(at.space.try_read_with_walks(at.addr).map(|(vma, _)| vma))
    }),
    entry("try_read_owned", Address, |at| read_owned(at.space.try_read_owned(at.addr))),
    entry("read", Address, |at| read(at.space.read(at.addr))).waits(),
    entry("read_owned", Address, |at| read_owned(at.space.read_owned(at.addr))).waits(),
    entry("a new Cursor", Address, |at| read(at.space.cursor().try_read(at.addr))),
    entry("a Cursor", Address, |at| read(at.cursor.try_read(at.addr))),
    entry("a Cursor's read", Address, |at| read(at.cursor.read(at.addr))).waits(),
    entry("a Reader", Address, |at| read(at.readers.reader.try_read(at.addr))).publishes(),
    entry("a Reader's read", Address, |at| read(at.readers.reader.read(at.addr)))
        .publishes()
        .waits(),
    entry("a full Reader", Address, |at| read(at.readers.full.try_read(at.addr))),
    entry("a new ReaderCursor", Address, |at| read(at.readers.reader.cursor().try_read(at.addr)))
        .publishes(),
    entry("a ReaderCursor", Address, |at| read(at.reader_cursor.try_read(at.addr))).publishes(),
    entry("a ReaderCursor's read", Address, |at| read(at.reader_cursor.read(at.addr)))
        .publishes()
        .waits(),
    entry("a full ReaderCursor", Address, |at| read(at.readers.full.cursor().try_read(at.addr))),
    entry("try_read_at_or_after", Next, |at| read_next(at.space.try_read_at_or_after(at.addr))),
    entry("read_at_or_after", Next, |at| read_next(at.space.read_at_or_after(at.addr))).waits(),
    entry("a Reader, at or after", Next, |at| {
        read_next(at.readers.reader.try_read_at_or_after(at.addr))
    })
    .publishes(),
    entry("a full Reader, at or after", Next, |at| {
        read_next(at.readers.full.try_read_at_or_after(at.addr))
    }),
    entry("try_read_or_hole", Either, |at| read_either(at.space.try_read_or_hole(at.addr))),
    entry("read_or_hole", Either, |at| read_either(at.space.read_or_hole(at.addr))).waits(),
    entry("a Reader, or a hole", Either, |at| {
        read_either(at.readers.reader.try_read_or_hole(at.addr))
    })
    .publishes(),
    entry("a full Reader, or a hole", Either, |at| {
        read_either(at.readers.full.try_read_or_hole(at.addr))
    }),
    entry("try_to_owned", Address, |at| {
        let vma = at.space.try_read(at.addr);
        read_owned(vma.and_then(|vma| vma.try_to_owned(at.space)))
    }),
    entry("try_read_id", Identity, |at| read(at.space.try_read_id(at.id))),
    entry("read_id", Identity, |at| read(at.space.read_id(at.id))).waits(),
    entry("a Reader, by id", Identity, |at| read(at.readers.reader.try_read_id(at.id))).publishes(),
    entry("a Reader's read_id", Identity, |at| read(at.readers.reader.read_id(at.id)))
        .publishes()
        .waits(),
    entry("a full Reader, by id", Identity, |at| read(at.readers.full.try_read_id(at.id))),
];

/// A place, and the results of lookups there.
struct Row {
    what: &'static str,
    addr: usize,
    id: VmaId,
    /// By address, of the next, by identity.
    outcomes: [Outcome; 3],
    /// In place of these, if what is read is published.
    published: Option<Outcome>,
    /// In place of these, of lookups that would wait, while the thread holds a guard.
    instead_of_waiting: Option<Outcome>,
}

fn row(what: &'static str, addr: usize, id: VmaId, outcomes: [Outcome; 3]) -> Row {
    Row { what, addr, id, outcomes, published: None, instead_of_waiting: None }
}

impl Row {
    fn published(self, outcome: Outcome) -> Self {
        Self { published: Some(outcome), ..self }
    }

    fn instead_of_waiting(self, outcome: Outcome) -> Self {
        Self { instead_of_waiting: Some(outcome), ..self }
    }

    fn expects(&self, entry: &Entry) -> Outcome {
        let [address, next, identity] = self.outcomes;
        let instead = if entry.waits { self.instead_of_waiting } else { None };
        let published = if entry.publishes { self.published } else { None };
        instead.or(published).unwrap_or(match entry.looks_for {
            Address => address,
            Next => next,
            Either => match address {
                Error(ReadError::NotMapped { .. } | ReadError::Reserved { .. }) => next,
                decided => decided,
            },
            Identity => identity,
        })
    }
}

/// Makes every lookup of every row inside a marked handler, and compares when that is over.
fn look_up_all(space: &Arc<Space>, readers: &Readers<'_>, rows: &[Row]) {
    let held: [_; PUBLISHED] = array::from_fn(|_| readers.full.try_read(FOUND).unwrap());
    for row in rows {
        let (cursor, reader_cursor) = (space.cursor(), readers.reader.cursor());
        let mut tools = Tools { space, readers, cursor, reader_cursor, addr: row.addr, id: row.id };
        drop((tools.cursor.try_read(row.addr), tools.reader_cursor.try_read(row.addr)));
        let handler = HandlerScope::<StdPlatform>::enter();
        let outcomes = ENTRIES.each_ref().map(|entry| (entry.look)(&mut tools));
        drop(handler);
        for (entry, outcome) in ENTRIES.iter().zip(outcomes) {
            assert_eq!(outcome, row.expects(entry), "{}, by {}", row.what, entry.name);
        }
    }
    drop(held);
}

fn id_at(space: &Space, addr: usize) -> VmaId {
    space.view().unwrap().id(addr).unwrap()
}

/// B16.
#[test]
fn a_lookup_neither_locks_nor_allocates_whatever_its_outcome() {
    let _alone = ALONE.lock().unwrap();
    let _watchdog = watchdog();
    nothing_goes_on();
    its_vma_has_as_many_readers_as_can_be();
    another_thread_edits();
    another_thread_excludes();
    its_own_thread_edits();
    its_own_thread_excludes();
    it_has_to_walk_again();
}

fn nothing_goes_on() {
    let space = space();
    let [found, gone, replaced] = [FOUND, GONE, CHANGED].map(|addr| id_at(&space, addr));
    let elsewhere = id_at(&self::space(), FOUND);
    drop(space.remove(page(GONE)).unwrap());
    drop(space.replace(page(CHANGED), Text::at(CHANGED)).unwrap());
    space.insert(page(RESERVED), Text::at(RESERVED)).unwrap();
    let reserved = id_at(&space, RESERVED);
    let exclusion = space.exclude(page(RESERVED)).unwrap();
    let (_, _reservation) = exclusion.remove_reserving().unwrap();

    let not_mapped = |addr| Error(ReadError::NotMapped { addr });
    let gone_at = |addr| Error(ReadError::Gone { addr });
    let rows = [
        row("a VMA", FOUND, found, [Found(FOUND); 3]),
        row("its last byte", FOUND + PAGE - 1, found, [Found(FOUND); 3]),
        row("where a VMA was", GONE, gone, [not_mapped(GONE), Found(CHANGED), gone_at(GONE)]),
        row(
            "a hole, and what was replaced",
            HOLE,
            replaced,
            [not_mapped(HOLE), Found(BUSY), gone_at(CHANGED)],
        ),
        row(
            "above all, and another space's identity",
            ABOVE,
            elsewhere,
            [not_mapped(ABOVE), Nothing, gone_at(FOUND)],
        ),
        row(
            "a reservation, and what was there",
            RESERVED,
            reserved,
            [Error(ReadError::Reserved { addr: RESERVED }), Found(CHANGED), gone_at(RESERVED)],
        ),
    ];
    look_up_all(&space, &Readers::register(&space), &rows);
}

fn its_vma_has_as_many_readers_as_can_be() {
    let space = space();
    let (readers, id) = (Readers::register(&space), id_at(&space, BUSY));
    // The count is the word that an exclusion waits on.
    let vma = space.try_read_owned(BUSY).unwrap();
    let exclusion = space.exclude(page(BUSY)).unwrap();
    assert!(!exclusion.wait_until(Instant::now()));
    drop(exclusion);
    // SAFETY: the word is the count of a VMA of the space, which lives.
    let count = unsafe { AtomicU32::from_ptr(CALLS.word.load(Relaxed)) };
    assert_eq!(count.load(Relaxed), 2, "the VMA itself, and a reader");
    let most = (1 << 30) - 1;
    count.store(most, Relaxed); // as if so many had come, and stayed

    let busy = Error(ReadError::Busy { addr: BUSY });
    let rows = [row("a VMA that is full", BUSY, id, [busy; 3]).published(Found(BUSY))];
    look_up_all(&space, &readers, &rows);
    assert_eq!(count.load(Relaxed), most);
    count.store(2, Relaxed);
    drop(vma);
}

/// The results of lookups of a VMA that another thread holds.
fn another_threads(space: &Arc<Space>, readers: &Readers<'_>, changed: VmaId, found: VmaId) {
    let locked = Error(ReadError::Locked { addr: CHANGED });
    let guard_held = Error(ReadError::GuardHeld { addr: CHANGED });
    let rows = [
        row("another thread's", CHANGED, changed, [locked; 3]).instead_of_waiting(guard_held),
        row("what it does not have", FOUND, found, [Found(FOUND); 3]),
    ];
    look_up_all(space, readers, &rows);
}

fn another_thread_edits() {
    let space = space();
    let readers = Readers::register(&space);
    let [found, changed] = [FOUND, CHANGED].map(|addr| id_at(&space, addr));
    let (begun, over) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut edit = space.edit().unwrap();
            edit.write(CHANGED).unwrap().0.push_str(", changed");
            begun.wait();
            over.wait();
        });
        begun.wait();
        another_threads(&space, &readers, changed, found);
        over.wait();
    });
}

fn another_thread_excludes() {
    let space = space();
    let readers = Readers::register(&space);
    let [found, changed] = [FOUND, CHANGED].map(|addr| id_at(&space, addr));
    let (begun, over) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let exclusion = space.exclude(page(CHANGED)).unwrap();
            begun.wait();
            over.wait();
            drop(exclusion);
        });
        begun.wait();
        another_threads(&space, &readers, changed, found);
        over.wait();
    });
}

fn its_own_thread_edits() {
    let space = space();
    let readers = Readers::register(&space);
    let [found, changed] = [FOUND, CHANGED].map(|addr| id_at(&space, addr));
    let mut edit = space.edit().unwrap();
    edit.write(CHANGED).unwrap().0.push_str(", changed");
    edit.insert(page(HOLE), Text::at(HOLE)).unwrap();
    let inserted = edit.id(HOLE).unwrap();
    let own = |addr| Error(ReadError::OwnEdit { addr });
    let rows = [
        row("what the edit has write-locked", CHANGED, changed, [own(CHANGED); 3]),
        row("what the edit has mapped", HOLE, inserted, [own(HOLE); 3]),
        row(
            "a hole beside a change",
            GONE + PAGE,
            changed,
            [own(GONE + PAGE), own(GONE + PAGE), own(CHANGED)],
        ),
        row("what the edit has not touched", FOUND, found, [Found(FOUND); 3]),
    ];
    look_up_all(&space, &readers, &rows);
    drop(edit);
}

fn its_own_thread_excludes() {
    let space = space();
    let readers = Readers::register(&space);
    let [found, changed] = [FOUND, CHANGED].map(|addr| id_at(&space, addr));
    let exclusion = space.exclude(page(CHANGED)).unwrap();
    let own = Error(ReadError::OwnExclusion { addr: CHANGED });
    let guard_held = Error(ReadError::GuardHeld { addr: CHANGED });
    let rows = [
        row("what the thread excludes", CHANGED, changed, [own; 3]).instead_of_waiting(guard_held),
        row("what it does not exclude", FOUND, found, [Found(FOUND); 3]),
    ];
    look_up_all(&space, &readers, &rows);
    drop(exclusion);
}

/// Another thread write-locks the VMA again and again, until a lookup has found it after it was in
/// the way.
fn it_has_to_walk_again() {
    let space = space();
    let (readers, id) = (Readers::register(&space), id_at(&space, CHANGED));
    let over = AtomicBool::new(false);
    let mut wrong = false;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let mut edit = space.edit().unwrap();
                drop(edit.write(CHANGED).unwrap());
            }
        });
        let (cursor, reader_cursor) = (space.cursor(), readers.reader.cursor());
        let (space, readers) = (&space, &readers);
        let mut tools = Tools { space, readers, cursor, reader_cursor, addr: CHANGED, id };
        let handler = HandlerScope::<StdPlatform>::enter();
        let mut walks = 0;
        while walks < 2 {
            if let Ok((_, walked)) = space.try_read_with_walks(CHANGED) {
                walks = walked;
            }
            for entry in ENTRIES.iter().filter(|entry| !entry.waits) {
                let outcome = (entry.look)(&mut tools);
                let locked = Error(ReadError::Locked { addr: CHANGED });
                wrong |= outcome != locked && outcome != Found(CHANGED);
            }
        }
        drop(handler);
        over.store(true, Relaxed);
    });
    assert!(!wrong, "neither locked nor found");
}

/// Each kind of guard, of a VMA that another thread waits for; and a reservation.
#[test]
fn what_was_held_is_dropped_in_a_handler_and_waiters_are_woken() {
    let _alone = ALONE.lock().unwrap();
    let dog = watchdog();
    for kind in 0..4 {
        let space = space();
        let readers = Readers::register(&space);
        let held: [_; PUBLISHED] = array::from_fn(|_| readers.full.try_read(FOUND).unwrap());
        let (mut guard, mut owned) = (None, None);
        match kind {
            0 => guard = Some(space.try_read(CHANGED).unwrap()),
            1 => guard = Some(readers.reader.try_read(CHANGED).unwrap()),
            2 => guard = Some(readers.full.try_read(CHANGED).unwrap()),
            _ => owned = Some(space.try_read_owned(CHANGED).unwrap()),
        }
        let before = CALLS.waits.load(Relaxed);
        thread::scope(|scope| {
            let removal = scope.spawn(|| space.remove(page(CHANGED)).unwrap().len());
            dog.until(|| CALLS.has_waited_since(before));
            assert!(!removal.is_finished());
            let handler = HandlerScope::<StdPlatform>::enter();
            guard = None;
            owned = None;
            drop(handler);
            assert_eq!(removal.join().unwrap(), 1, "guard {kind}");
        });
        drop((held, guard, owned));
    }

    let space = space();
    let reservation = space.reserve(page(RESERVED)).unwrap();
    let mut edit = space.edit().unwrap();
    let another = edit.reserve(page(HOLE)).unwrap();
    let handler = HandlerScope::<StdPlatform>::enter();
    drop(reservation); // perhaps in the middle of something that the edit does
    drop(another);
    drop(handler);
    assert!(edit.insert(page(RESERVED), Text::at(RESERVED)).is_err(), "left to the next edit");
    drop(edit);
    let mut edit = space.edit().unwrap();
    for start in [RESERVED, HOLE] {
        edit.insert(page(start), Text::at(start)).unwrap();
    }
}

/// How a child of this process ends that does `deed` in a marked handler.
fn child_that(deed: fn()) -> libc::c_int {
    // SAFETY: the child makes no call that could need what another thread holds of the process.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit is valid while it is read.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        let handler = HandlerScope::<StdPlatform>::enter();
        deed();
        drop(handler);
        // SAFETY: no precondition.
        unsafe { libc::_exit(42) };
    }
    assert!(child > 0, "a child can be made");
    let mut status = 0;
    // SAFETY: the status is valid while it is written.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Else the tests above could not fail.
#[test]
fn a_handler_that_allocates_or_locks_would_not_survive() {
    let _watchdog = watchdog();
    static LOCK: <Host as Platform>::Lock = <Host as Platform>::Lock::INIT;
    static MAPPED: AddressSpace<u32, Host> = AddressSpace::with_platform(PAGE);
    MAPPED.insert(page(FOUND), 7).unwrap();

    thread_local! {
        static GIVEN_BACK: Cell<Option<Box<u32>>> = const { Cell::new(None) };
    }
    GIVEN_BACK.set(Some(Box::new(1)));

    let status = child_that(|| drop(MAPPED.try_read(FOUND)));
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "a lookup survives");
    let deeds: [(&str, fn()); 5] = [
        ("memory is asked for", || drop(std::hint::black_box(Box::new(1)))),
        ("memory is given back", || drop(GIVEN_BACK.take())),
        ("a lock is taken", || LOCK.lock_exclusive()),
        ("a lock is taken, shared", || LOCK.lock_shared()),
        ("a lock is tried", || _ = LOCK.try_lock_exclusive()),
    ];
    for (what, deed) in deeds {
        let status = child_that(deed);
        assert!(libc::WIFSIGNALED(status), "{what}: {status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT, "{what}");
    }
}
