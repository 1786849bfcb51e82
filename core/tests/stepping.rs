//! A signal handler after each single instruction of a registered reader's lookups and of the drop
//! of its guards: by the processor's trap flag, so that no window is missed for being short.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::arch::asm;
use std::hint::black_box;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::thread;

use common::{Calls, Delegate, Watched, watchdog};
use pervma::AddressSpace;

enum Stepped {}

static CALLS: Calls = Calls::none();

impl Watched for Stepped {
    fn calls() -> &'static Calls {
        &CALLS
    }
}

type Host = Delegate<Stepped>;
type Space = AddressSpace<u64, Host>;
type Reader<'s> = pervma::Reader<'s, u64, Host>;

/// The registered reader of the thread that is stepped through.
static READER: AtomicPtr<Reader<'static>> = AtomicPtr::new(ptr::null_mut());
/// What the handler does at its step.
static HANDLER: AtomicPtr<fn(&Reader<'_>)> = AtomicPtr::new(ptr::null_mut());
/// The instructions that were stepped over, and the one after which the handler does it, or
/// [`EACH`].
static STEPS: AtomicU64 = AtomicU64::new(0);
static AT: AtomicU64 = AtomicU64::new(0);

/// After each instruction.
const EACH: u64 = u64::MAX;

/// One test at a time: there is one handler.
static ALONE: Mutex<()> = Mutex::new(());

extern "C" fn stepped(_signal: libc::c_int) {
    if [STEPS.fetch_add(1, Relaxed), EACH].contains(&AT.load(Relaxed)) {
        // SAFETY: it belongs to the interrupted thread, and outlives what that is doing.
        let reader = unsafe { &*READER.load(Relaxed) };
        // SAFETY: as above.
        let handler = unsafe { &*HANDLER.load(Relaxed) };
        handler(reader);
    }
}

/// Runs `body` with the trap flag raised, and `handler` after instruction `at` of it; says how many
/// instructions there were.
fn step<R>(
    reader: &Reader<'_>,
    mut handler: fn(&Reader<'_>),
    at: u64,
    body: impl FnOnce() -> R,
) -> (u64, R) {
    // SAFETY: `sigaction` is plain data, for which zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = stepped as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler makes lookups, which are async-signal-safe.
    let installed = unsafe { libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut()) };
    assert_eq!(installed, 0);
    READER.store(ptr::from_ref(reader).cast_mut().cast(), Relaxed);
    HANDLER.store(&raw mut handler, Relaxed);
    STEPS.store(0, Relaxed);
    AT.store(at, Relaxed);
    // SAFETY: the trap flag changes nothing but that the handler runs.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    let result = body();
    // SAFETY: as above.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    (STEPS.load(Relaxed), result)
}

const V: usize = 10;
const U: usize = 30;

fn space() -> Space {
    let space = Space::with_platform(1);
    let mut edit = space.edit().unwrap();
    edit.insert(V..V + 5, 1).unwrap();
    edit.insert(U..U + 5, 1).unwrap();
    drop(edit);
    space
}

/// Whether the VMA has no reader, as another thread sees it.
fn is_idle(space: &Space, addr: usize) -> bool {
    thread::scope(|scope| {
        let idle = || space.edit().unwrap().try_write(addr).is_ok();
        scope.spawn(idle).join().unwrap()
    })
}

/// Both VMAs, one after the other and nested.
fn reads_both(reader: &Reader<'_>) {
    drop(reader.try_read(V));
    drop(reader.try_read(U));
    let v = reader.try_read(V);
    let u = reader.try_read(U);
    drop(v);
    drop(u);
}

#[test]
fn a_handler_at_each_instruction_takes_nothing_away_and_leaves_nothing() {
    let _watchdog = watchdog();
    let _alone = ALONE.lock();
    let space = space();
    let reader = space.register().unwrap();
    let u = reader.try_read(U).unwrap();
    for _ in 0..3 {
        let (steps, v) = step(&reader, reads_both, EACH, || black_box(reader.try_read(V).unwrap()));
        assert!(!is_idle(&space, U) && !is_idle(&space, V), "a publication was retracted");
        assert!(steps > 10, "{steps} instructions");
        let (steps, ()) = step(&reader, reads_both, EACH, || drop(black_box(v)));
        assert!(is_idle(&space, V), "a publication was not retracted");
        assert!(!is_idle(&space, U), "another guard's publication was retracted");
        assert!(steps > 10, "{steps} instructions");
    }
    drop(u);
    assert!(is_idle(&space, U));
}

/// Edits that find nothing in a record, and more than enough to take it for idle.
const IDLE_EDITS: usize = 20;

#[test]
fn a_handler_at_each_instruction_of_an_idle_readers_first_lookup_takes_nothing_away() {
    let _watchdog = watchdog();
    let _alone = ALONE.lock();
    let space = space();
    let reader = space.register().unwrap();
    // Unoptimised, one step of the source is many instructions.
    for at in (0..).step_by(if cfg!(debug_assertions) { 9 } else { 1 }) {
        for _ in 0..IDLE_EDITS {
            *space.edit().unwrap().write(U).unwrap() += 1;
        }
        let (steps, v) = step(&reader, reads_both, at, || black_box(reader.try_read(V).unwrap()));
        assert!(!is_idle(&space, V) && is_idle(&space, U));
        // What comes next is published.
        let u = reader.try_read(U).unwrap();
        assert!(!is_idle(&space, U), "a publication that no edit looks for");
        drop((v, u));
        assert!(is_idle(&space, V) && is_idle(&space, U));
        if at > steps {
            break;
        }
    }
}

/// Whether the handler holds a guard of the other VMA.
static HOLDS: AtomicBool = AtomicBool::new(false);

/// Holds a guard of the other VMA until a writer waits for it.
fn is_waited_for(reader: &Reader<'_>) {
    let Ok(u) = reader.try_read(U) else { return };
    let before = CALLS.waits.load(Relaxed);
    HOLDS.store(true, Relaxed);
    while !CALLS.has_waited_since(before) {
        thread::yield_now();
    }
    drop(u);
}

#[test]
fn a_handler_that_is_waited_for_does_not_hide_that_its_thread_was() {
    let dog = watchdog();
    let _alone = ALONE.lock();
    let space = space();
    let reader = space.register().unwrap();
    // Unoptimised, one step of the source is many instructions.
    for at in (0..).step_by(if cfg!(debug_assertions) { 9 } else { 1 }) {
        let v = reader.try_read(V).unwrap();
        HOLDS.store(false, Relaxed);
        let over = AtomicBool::new(false);
        let before = CALLS.waits.load(Relaxed);
        let steps = thread::scope(|scope| {
            // Were its release lost, this would wait forever.
            scope.spawn(|| space.exclude(V..V + 5).unwrap().wait());
            dog.until(|| CALLS.has_waited_since(before));
            scope.spawn(|| {
                dog.until(|| HOLDS.load(Relaxed) || over.load(Relaxed));
                if HOLDS.load(Relaxed) {
                    *space.edit().unwrap().write(U).unwrap() += 1;
                }
            });
            let (steps, ()) = step(&reader, is_waited_for, at, || drop(black_box(v)));
            over.store(true, Relaxed);
            steps
        });
        assert!(is_idle(&space, V) && is_idle(&space, U));
        if at > steps {
            break;
        }
    }
}
