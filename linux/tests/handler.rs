//! A signal handler that asks the map while its own thread and others change it: after each
//! instruction of every method, by the processor's trap flag, and at any moment, by many signals to
//! several threads.
//!
//! What is mapped all the time is never a hole, and the handler neither waits nor allocates.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::cell::Cell;
use std::hint::black_box;
use std::process::Command;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::thread;

use pervma_linux::{
    Access, Backing, Config, HandlerScope, Mm, NoBacking, NotNow, Part, Refusal, Signal,
    StdPlatform, abi::*,
};
use watchdog::watchdog;

type Space<B = NoBacking> = Mm<B, StdPlatform>;

/// Mapped all the time, in the middle of what changes.
const CONSTANT: usize = 0x1000_0000;
/// Mapped all the time, far away.
const FAR: usize = 0x7000_0000;
/// Never mapped.
const HOLE: usize = 0x4000_0000;
/// Mapped and unmapped again and again, beside the first.
const BESIDE: usize = CONSTANT + 8 * PAGE;
const STACK: usize = 0x5000_0000;
/// Mapped, written and unmapped by the calls.
const FRESH: usize = 0x6000_0000;
/// Taken over by a call.
const TAKEN: usize = 0x6800_0000;

const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS;
const FIXED: u64 = ANONYMOUS | MAP_FIXED;

// --- The allocator that no handler may use -------------------------------------------------------

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

struct Watched;

fn check_allocation() {
    if IN_HANDLER.get() {
        const SAID: &[u8] = b"a signal handler has used the allocator\n";
        // SAFETY: writes the bytes of a constant, as many as it has.
        unsafe { libc::write(2, SAID.as_ptr().cast(), SAID.len()) };
        std::process::abort();
    }
}

// SAFETY: the system's allocator, behind a check.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check_allocation();
        // SAFETY: the contract is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        check_allocation();
        // SAFETY: the contract is handed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

// --- What the handler asks -----------------------------------------------------------------------

/// The map, while a handler may ask it.
static MM: AtomicPtr<Space> = AtomicPtr::new(ptr::null_mut());

/// What the handler does wrong: nothing, or what an environment variable says.
static PLANT: AtomicU64 = AtomicU64::new(0);
const HOLES_FOR_NOT_NOW: u64 = 1;
const ALLOCATES: u64 = 2;

static HANDLED: AtomicU64 = AtomicU64::new(0);
static FOUND: AtomicU64 = AtomicU64::new(0);
static OWN_CALL: AtomicU64 = AtomicU64::new(0);
static CHANGING: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Counts the answer for what is mapped all the time.
fn count(answer: Result<bool, NotNow>) {
    let counter = match answer {
        Ok(true) => &FOUND,
        Err(NotNow::OwnCall) => &OWN_CALL,
        Err(NotNow::Changing) => &CHANGING,
        Ok(false) | Err(NotNow::NeedsCall) => &WRONG,
    };
    counter.fetch_add(1, Relaxed);
}

/// Asks for what is mapped all the time, and one other question.
fn ask(mm: &Space, turn: u64) {
    let holds = |addr: usize| {
        let vma = mm.try_lookup(addr)?;
        Ok::<_, NotNow>(vma.is_some_and(|vma| vma.range().contains(&addr)))
    };
    match PLANT.load(Relaxed) {
        HOLES_FOR_NOT_NOW => count(Ok(holds(CONSTANT).unwrap_or(false))),
        ALLOCATES => drop(black_box(Box::new(1))),
        _ => count(holds(CONSTANT)),
    }
    // What is found is right, and nothing is found where nothing is.
    let right = match turn % 8 {
        0 => return count(holds(FAR)),
        1 => {
            let served = mm.try_fault(CONSTANT, Access::Read);
            return count(served.map(|served| served == Ok(())));
        }
        2 => mm.try_lookup(BESIDE).map(|vma| vma.is_none_or(|vma| vma.range().contains(&BESIDE))),
        3 => {
            let next = mm.try_lookup_from(BESIDE);
            next.map(|next| next.is_none_or(|vma| vma.range().end > BESIDE))
        }
        4 => mm.try_lookup(HOLE).map(|vma| vma.is_none()),
        5 => mm.try_fault(HOLE, Access::Write).map(|served| served == Err(Signal::NotMapped)),
        // A private mapping is writable, whether or not it has been written, or it is not there.
        6 => mm.try_fault(FRESH, Access::Write).map(|served| served != Err(Signal::NotAllowed)),
        // A stack can grow as long as it is there: no signal for a touch below it.
        _ => mm.try_fault(STACK - 64 * PAGE, Access::Read).map(|served| served == Ok(())),
    };
    WRONG.fetch_add(u64::from(right == Ok(false)), Relaxed);
}

/// An unoptimised build has many instructions for a line of source: it asks after every fifth.
const STRIDE: u64 = if cfg!(debug_assertions) { 5 } else { 1 };

extern "C" fn handle(signal: libc::c_int) {
    let turn = HANDLED.fetch_add(1, Relaxed);
    if signal == libc::SIGTRAP && !turn.is_multiple_of(STRIDE) {
        return;
    }
    IN_HANDLER.set(true);
    let scope = HandlerScope::<StdPlatform>::enter();
    // SAFETY: it is set while the map lives, and cleared before the map is dropped.
    if let Some(mm) = unsafe { MM.load(Relaxed).as_ref() } {
        ask(mm, turn / STRIDE);
    }
    drop(scope);
    IN_HANDLER.set(false);
}

fn install(signal: libc::c_int) {
    // SAFETY: `sigaction` is plain data, for which zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler calls what may be called in one, and counts.
    assert_eq!(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) }, 0);
}

fn counts() -> [u64; 5] {
    [&HANDLED, &FOUND, &OWN_CALL, &CHANGING, &WRONG].map(|count| count.load(Relaxed))
}

/// Held by the running test: the counters are shared.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn space(strict: bool) -> Space {
    let mm = Mm::new(NoBacking, Config { strict, ..Config::default() });
    let prot = PROT_READ | PROT_WRITE;
    for addr in [CONSTANT, FAR] {
        mm.mmap(addr, 4 * PAGE, PROT_READ, FIXED, None, 0).unwrap();
    }
    mm.mmap(STACK, PAGE, prot, FIXED | MAP_GROWSDOWN, None, 0).unwrap();
    mm
}

// --- After each instruction ----------------------------------------------------------------------

/// Runs `body` with the trap flag raised, and the handler after each instruction of it.
fn step(mm: &Space, body: impl FnOnce()) -> u64 {
    let before = HANDLED.load(Relaxed);
    MM.store(ptr::from_ref(mm).cast_mut(), Relaxed);
    // SAFETY: the trap flag changes nothing but that the handler runs.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    body();
    // SAFETY: as above.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    MM.store(ptr::null_mut(), Relaxed);
    HANDLED.load(Relaxed) - before
}

type Call = fn(&Space);

const PRIVATE: u64 = PROT_READ | PROT_WRITE;

/// All methods, each on what the ones before have left.
const CALLS: [(&str, Call); 38] = [
    ("split", |mm| mm.mprotect(CONSTANT, PAGE, PROT_READ | PROT_EXEC).unwrap()),
    ("merge", |mm| mm.mprotect(CONSTANT, PAGE, PROT_READ).unwrap()),
    ("map over it", |mm| _ = mm.mmap(CONSTANT, PAGE, PROT_READ, FIXED, None, 0).unwrap()),
    ("map beside", |mm| _ = mm.mmap(BESIDE, PAGE, PROT_READ, FIXED, None, 0).unwrap()),
    ("move here", |mm| {
        let fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
        mm.mremap(BESIDE, PAGE, PAGE, fixed, CONSTANT + 4 * PAGE).unwrap();
    }),
    ("unmap beside", |mm| mm.munmap(CONSTANT + 4 * PAGE, 16 * PAGE).unwrap()),
    ("map", |mm| _ = mm.mmap(FRESH, 2 * PAGE, PRIVATE, FIXED, None, 0).unwrap()),
    ("write", |mm| mm.fault(FRESH, Access::Write).unwrap()),
    ("write again", |mm| mm.fault(FRESH, Access::Write).unwrap()),
    ("populate", |mm| mm.madvise(FRESH, 2 * PAGE, MADV_POPULATE_WRITE).unwrap()),
    ("advise", |mm| mm.madvise(FRESH, PAGE, MADV_DONTFORK).unwrap()),
    ("discard", |mm| mm.madvise(CONSTANT, 2 * PAGE, MADV_DONTNEED).unwrap()),
    ("guard", |mm| mm.madvise(FRESH + PAGE, PAGE, MADV_GUARD_INSTALL).unwrap()),
    ("name", |mm| mm.set_anon_name(CONSTANT, PAGE, Some("name")).unwrap()),
    ("take the name away", |mm| mm.set_anon_name(CONSTANT, 4 * PAGE, None).unwrap()),
    ("lock", |mm| mm.mlock2(CONSTANT + PAGE, PAGE, MLOCK_ONFAULT).unwrap()),
    ("lock what comes", |mm| mm.mlockall(MCL_FUTURE).unwrap()),
    ("unlock", |mm| mm.munlock(FAR, PAGE).unwrap()),
    ("unlock all", |mm| mm.munlockall().unwrap()),
    ("sync", |mm| mm.msync(CONSTANT, PAGE, MS_SYNC).unwrap()),
    ("residency", |mm| mm.mincore(CONSTANT, PAGE, FRESH).unwrap()),
    ("grow", |mm| _ = mm.mremap(FRESH, PAGE, 3 * PAGE, MREMAP_MAYMOVE, 0).unwrap()),
    ("map again", |mm| _ = mm.mmap(FRESH, 2 * PAGE, PRIVATE, FIXED, None, 0).unwrap()),
    ("leave empty", |mm| {
        let stays = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
        mm.mremap(FRESH, 2 * PAGE, 2 * PAGE, stays, 0).unwrap();
    }),
    ("extend the heap", |mm| assert!(mm.brk(mm.brk(0) + PAGE) > 0)),
    ("move the heap", |mm| {
        let layout = mm.config().layout;
        mm.set_addresses(pervma_linux::Layout {
            start_brk: TAKEN - PAGE,
            brk: TAKEN - PAGE,
            ..layout
        })
        .unwrap();
    }),
    ("move its end", |mm| assert!(mm.set_address(PR_SET_MM_BRK, TAKEN).is_err())),
    ("take over", |mm| {
        let (_, vma) = mm.lookup(CONSTANT).unwrap().unwrap();
        mm.adopt(TAKEN..TAKEN + PAGE, vma).unwrap();
        mm.adopt_counts(mm.counts()).unwrap();
    }),
    ("configure", |mm| mm.configure(|config| config.max_map_count = 1000).unwrap()),
    ("limit", |mm| mm.set_limits(mm.limits())),
    ("look", |mm| assert!(mm.lookup_from(HOLE).unwrap().is_some())),
    ("list", |mm| assert!(!mm.maps().unwrap().is_empty())),
    // As a handler does that a second one interrupts.
    ("try", |mm| drop(mm.try_lookup(CONSTANT).unwrap())),
    ("try to fault", |mm| assert_eq!(mm.try_fault(CONSTANT, Access::Read), Ok(Ok(())))),
    ("seal", |mm| mm.mseal(FAR, PAGE, 0).unwrap()),
    ("stack", |mm| mm.fault(STACK - 2 * PAGE, Access::Write).unwrap()),
    ("force", |mm| mm.access_forced(CONSTANT, Access::Write).unwrap()),
    ("fork", |mm| drop(mm.fork(NoBacking).unwrap())),
];

#[test]
fn after_each_instruction_of_every_call_what_is_mapped_is_no_hole() {
    let _turn = ONE_AT_A_TIME.lock();
    let _watchdog = watchdog(300);
    PLANT.store(std::env::var("PLANT").map_or(0, |plant| plant.parse().unwrap()), Relaxed);
    install(libc::SIGTRAP);
    let before = counts();
    // What a strict call does more is the same for each.
    for (strict, calls) in [(false, &CALLS[..]), (true, &CALLS[..1])] {
        let mm = space(strict);
        for (name, call) in calls {
            let steps = step(&mm, || call(black_box(&mm)));
            assert_eq!(WRONG.load(Relaxed), before[4], "{name}, strict: {strict}");
            assert!(steps > 20, "{name}: {steps} instructions");
        }
    }
    PLANT.store(0, Relaxed);
    let [handled, found, own_call, changing, _] = counts();
    println!("{handled} instructions: {found} found, {own_call} in the thread's own call");
    assert_eq!(changing, before[3], "no other thread is there");
    assert!(found > before[1] && own_call > before[2]);
}

/// The test above fails when the handler is wrong.
#[test]
fn a_hole_for_not_now_and_an_allocation_are_noticed() {
    if std::env::var_os("PLANT").is_some() {
        return;
    }
    for (plant, said) in [(HOLES_FOR_NOT_NOW, "strict: false"), (ALLOCATES, "used the allocator")] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "after_each_instruction_of_every_call_what_is_mapped_is_no_hole"])
            .arg("--nocapture")
            .env("PLANT", plant.to_string())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(said), "{plant}: {stderr}");
    }
}

// --- At any moment -------------------------------------------------------------------------------

#[test]
fn in_a_storm_of_signals_what_is_mapped_is_no_hole() {
    const SIGNALS: u64 = 3_000;
    let _turn = ONE_AT_A_TIME.lock();
    let _watchdog = watchdog(300);
    install(libc::SIGUSR1);
    let before = counts();
    let mm = space(false);
    MM.store(ptr::from_ref(&mm).cast_mut(), Relaxed);
    let (over, targets) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let over = &over;
    // SAFETY: no precondition.
    let becomes_target = || targets.lock().unwrap().push(unsafe { libc::pthread_self() });
    let seen = || counts().into_iter().zip(before).map(|(now, before)| now - before);
    thread::scope(|scope| {
        let runs = |mut body: Box<dyn FnMut() + Send>| {
            scope.spawn(move || {
                becomes_target();
                while !over.load(Relaxed) {
                    body();
                }
            })
        };
        let mm = &mm;
        let others = [
            // One changes the same mappings.
            runs(Box::new(|| {
                mm.mprotect(CONSTANT + PAGE, PAGE, PROT_READ | PROT_EXEC).unwrap();
                mm.mprotect(CONSTANT, 2 * PAGE, PROT_READ).unwrap();
            })),
            // One asks for them, and touches what it has mapped.
            runs(Box::new(|| {
                assert!(mm.lookup(CONSTANT).unwrap().is_some());
                mm.fault(CONSTANT, Access::Read).unwrap();
                assert_ne!(mm.try_fault(FAR, Access::Read), Ok(Err(Signal::NotMapped)));
                mm.mmap(FRESH, PAGE, PRIVATE, FIXED, None, 0).unwrap();
                mm.fault(FRESH, Access::Write).unwrap();
                mm.munmap(FRESH, PAGE).unwrap();
            })),
            runs(Box::new(|| {
                mm.mprotect(CONSTANT, PAGE, PROT_READ | PROT_EXEC).unwrap();
                mm.mmap(BESIDE, PAGE, PROT_READ, FIXED, None, 0).unwrap();
                mm.munmap(BESIDE, PAGE).unwrap();
                mm.mprotect(CONSTANT, 4 * PAGE, PROT_READ).unwrap();
                mm.mlockall(MCL_CURRENT).unwrap();
                mm.munlockall().unwrap();
            })),
        ];
        while targets.lock().unwrap().len() < others.len() {
            thread::yield_now();
        }
        // This ends when each of the right answers has been given.
        let goes_on = || seen().take(4).enumerate().any(|(i, n)| n < [SIGNALS, 1, 1, 1][i]);
        let turns = targets.lock().unwrap().clone().into_iter().cycle();
        for (target, sent) in turns.zip(before[0]..).take_while(|_| goes_on()) {
            // One at a time: signals that follow at once would interrupt the same instruction.
            while HANDLED.load(Relaxed) < sent {
                thread::yield_now();
            }
            // SAFETY: the thread lives until this one says that it is over.
            assert_eq!(unsafe { libc::pthread_kill(target, libc::SIGUSR1) }, 0);
        }
        over.store(true, Relaxed);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
    MM.store(ptr::null_mut(), Relaxed);
    println!("{:?}", seen().collect::<Vec<_>>());
    assert_eq!(WRONG.load(Relaxed), before[4]);
}

// --- What is answered ----------------------------------------------------------------------------

/// Refuses one page.
struct Refusing(usize, Refusal);

impl Backing for Refusing {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        if part.range.contains(&self.0) { Err(self.1) } else { Ok(()) }
    }
}

#[test]
fn a_touch_is_answered_as_by_a_call_or_not_now() {
    let mm: Space<Refusing> = Mm::new(Refusing(FAR, Refusal::Bus), Config::default());
    let prot = PROT_READ | PROT_WRITE;
    mm.mmap(CONSTANT, PAGE, PROT_READ, FIXED, None, 0).unwrap();
    mm.mmap(BESIDE, PAGE, prot, FIXED, None, 0).unwrap();
    mm.mmap(FAR, 2 * PAGE, prot, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, None, 0).unwrap();
    mm.mmap(STACK, PAGE, prot, FIXED | MAP_GROWSDOWN, None, 0).unwrap();
    let (read, write, execute) = (Access::Read, Access::Write, Access::Execute);
    for (addr, access) in [
        (CONSTANT, read),
        (CONSTANT, write),
        (CONSTANT, execute),
        (CONSTANT + PAGE, read),
        (BESIDE, read),
        (FAR, write),
        (FAR + PAGE, write),
        (FAR + 2 * PAGE, read),
        (STACK + PAGE, read),
        (mm.config().layout.task_size, read),
        (1 << 47, read),
        (usize::MAX, write),
    ] {
        assert_eq!(mm.try_fault(addr, access), Ok(mm.fault(addr, access)), "{addr:#x} {access:?}");
    }
    for (addr, access) in [(BESIDE, write), (STACK, write), (STACK - PAGE, read)] {
        assert_eq!(mm.try_fault(addr, access), Err(NotNow::NeedsCall), "{addr:#x}");
        assert_eq!(mm.fault(addr, access), Ok(()));
        assert_eq!(mm.try_fault(addr, access), Ok(Ok(())), "{addr:#x}");
    }
    // A guard keeps the VMA as it is, and the thread from changing it.
    let vma = mm.try_lookup(CONSTANT).unwrap().unwrap();
    assert_eq!(mm.munmap(CONSTANT, PAGE), Err(pervma_linux::Errno::EAGAIN));
    drop(vma);
    assert_eq!(mm.munmap(CONSTANT, PAGE), Ok(()));
}
