//! Calls beside others whose backing is at work.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Barrier, Condvar, Mutex, mpsc};
use std::thread::{self, Scope};
use std::time::Duration;

use pervma_linux::{
    Access, Backing, Config, Errno, File, FileFacts, Limits, Mm, NoBacking, OpenFile, Part,
    Refusal, Signal, Source, StdPlatform, VmFlags, Vma, Work, abi::*,
};

use watchdog::watchdog;

type Space = Mm<Slow, StdPlatform>;

/// Long enough for a call that need not wait.
const SOON: Duration = Duration::from_secs(60);
/// Long enough to see that a call waits.
const WHILE: Duration = Duration::from_millis(20);

/// Of two threads that meet.
const ROUNDS: usize = 10_000;

const FIXED: u64 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
const RW: u64 = PROT_READ | PROT_WRITE;
/// A mapping of 16 pages, of which the backing is slow at [`SLOW`].
const HERE: usize = 0x1000_0000;
const SLOW: usize = HERE + 4 * PAGE;
const END: usize = HERE + 16 * PAGE;
/// Four pages where nothing is mapped, up to this mapping.
const BELOW: usize = HERE - 4 * PAGE;
/// Nothing is mapped here.
const THERE: usize = 0x2000_0000;

/// The methods that a backing can be slow in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Method {
    Fault,
    Unmap,
    Relocate,
    Protect,
    Copy,
    Advise,
    Sync,
}

/// A backing that stops in a method that is about the page at [`SLOW`].
#[derive(Default)]
struct Slow {
    stops: Mutex<BTreeSet<Method>>,
    changed: Condvar,
    /// How many stand still.
    standing: Mutex<usize>,
    /// Refuses any work.
    refuses: Mutex<bool>,
    panics: Mutex<bool>,
}

impl Slow {
    fn pass(&self, method: Method, range: &Range<usize>) {
        if !range.contains(&SLOW) {
            return;
        }
        assert!(!*self.panics.lock().unwrap(), "the backing panics");
        let mut stops = self.stops.lock().unwrap();
        *self.standing.lock().unwrap() += 1;
        while stops.contains(&method) {
            stops = self.changed.wait(stops).unwrap();
        }
        *self.standing.lock().unwrap() -= 1;
    }

    fn stop(&self, method: Method) {
        self.stops.lock().unwrap().insert(method);
    }

    fn go_on(&self) {
        self.stops.lock().unwrap().clear();
        self.changed.notify_all();
    }

    fn wait_until_one_stands(&self) {
        while *self.standing.lock().unwrap() == 0 {
            thread::yield_now();
        }
    }
}

/// Lets the backing go on, also if the test fails.
struct GoOn<'a>(&'a Slow);

impl Drop for GoOn<'_> {
    fn drop(&mut self) {
        self.0.go_on();
    }
}

impl Backing for Slow {
    fn prepare(&self, work: &[Work]) -> Result<(), Errno> {
        assert!(!work.is_empty());
        if *self.refuses.lock().unwrap() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn fault(&self, part: Part<'_>, _: Access) -> Result<(), Refusal> {
        self.pass(Method::Fault, &part.range);
        Ok(())
    }

    fn unmap(&self, range: Range<usize>) {
        self.pass(Method::Unmap, &range);
    }

    fn relocate(&self, from: Range<usize>, _: usize) {
        self.pass(Method::Relocate, &from);
    }

    fn protect(&self, part: Part<'_>) {
        self.pass(Method::Protect, &part.range);
    }

    fn copy(&self, part: Part<'_>, _: &Self) {
        self.pass(Method::Copy, &part.range);
    }

    fn advise(&self, part: Part<'_>, _: i32) -> Result<(), Errno> {
        self.pass(Method::Advise, &part.range);
        Ok(())
    }

    fn sync(&self, part: Part<'_>) -> Result<(), Errno> {
        self.pass(Method::Sync, &part.range);
        Ok(())
    }
}

fn untouched_space() -> Space {
    let mm = Mm::new(Slow::default(), Config { huge_pages: false, ..Config::default() });
    mm.mmap(HERE, END - HERE, RW, FIXED, None, 0).unwrap();
    mm
}

fn space() -> Space {
    let mm = untouched_space();
    mm.fault(HERE, Access::Write).unwrap();
    mm
}

/// The calls that have the backing at work on the page at [`SLOW`], and on no other, and the method
/// they call.
type Call = fn(&Space) -> Result<(), Errno>;
const CALLS: [(Method, Call); 9] = [
    (Method::Unmap, |mm| mm.munmap(SLOW, PAGE)),
    (Method::Unmap, |mm| mm.mmap(SLOW, PAGE, RW, FIXED, None, 0).map(drop)),
    (Method::Protect, |mm| mm.mprotect(SLOW, PAGE, PROT_READ)),
    (Method::Relocate, |mm| {
        mm.mremap(SLOW, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, THERE).map(drop)
    }),
    (Method::Relocate, |mm| mm.mremap(SLOW, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0).map(drop)),
    (Method::Advise, |mm| mm.madvise(SLOW, PAGE, MADV_DONTNEED)),
    (Method::Fault, |mm| mm.madvise(SLOW, PAGE, MADV_POPULATE_READ)),
    (Method::Fault, |mm| mm.mlock(SLOW, PAGE)),
    (Method::Sync, |mm| {
        let facts = FileFacts { writable: true, ..FileFacts::new() };
        let file: std::sync::Arc<dyn File> = std::sync::Arc::new(OpenFile::new("/file", facts));
        mm.mmap(SLOW, PAGE, RW, MAP_SHARED | MAP_FIXED, Some(&file), 0)?;
        mm.msync(SLOW, PAGE, MS_SYNC)
    }),
];

/// Runs `then` while each of the calls above is at work.
fn beside_each(then: impl for<'scope> Fn(&'scope Scope<'scope, '_>, &'scope Space, Method)) {
    let _watchdog = watchdog(300);
    for (method, call) in CALLS {
        let mm = space();
        mm.backing().stop(method);
        thread::scope(|scope| {
            let working = scope.spawn(|| call(&mm));
            mm.backing().wait_until_one_stands();
            let stands = GoOn(mm.backing());
            then(scope, &mm, method);
            drop(stands);
            assert_eq!(working.join().unwrap(), Ok(()), "{method:?}");
        });
        mm.munmap(0, mm.config().layout.task_size).unwrap();
        assert_eq!((mm.maps().unwrap().as_str(), mm.counts().total), ("", 0), "{method:?}");
    }
}

#[test]
fn calls_on_other_addresses_go_on_while_a_backing_works() {
    beside_each(|_, mm, method| {
        // In the same mapping on both sides, and anywhere.
        for at in [HERE, SLOW - PAGE, SLOW + PAGE, END - PAGE] {
            mm.mprotect(at, PAGE, PROT_READ).unwrap();
            mm.madvise(at, PAGE, MADV_DONTNEED).unwrap();
            mm.mlock(at, PAGE).unwrap();
            assert_eq!(mm.fault(at, Access::Read), Ok(()), "{method:?}");
            mm.munmap(at, PAGE).unwrap();
            assert_eq!(mm.fault(at, Access::Read), Err(Signal::NotMapped), "{method:?}");
            mm.mmap(at, PAGE, RW, FIXED, None, 0).unwrap();
        }
        // Where the highest gap is taken, who would choose it waits.
        let hint = if method == Method::Relocate { 3 * THERE } else { 0 };
        let chosen = mm.mmap(hint, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, None, 0).unwrap();
        mm.fault(chosen, Access::Write).unwrap();
        let moved = mm.mremap(chosen, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE, 0).unwrap();
        mm.mprotect(moved, PAGE, PROT_READ).unwrap();
        let heap = mm.brk(0);
        assert_eq!(mm.brk(heap + 4 * PAGE), heap + 4 * PAGE);
        assert_eq!(mm.brk(heap), heap);
        assert!(mm.maps().unwrap().lines().count() > 1);
    });
}

#[test]
fn calls_on_the_same_addresses_wait_for_each_other() {
    let calls: [(&str, Call); 9] = [
        ("munmap", |mm| mm.munmap(HERE, END - HERE)),
        ("mmap", |mm| mm.mmap(SLOW - PAGE, 3 * PAGE, RW, FIXED, None, 0).map(drop)),
        ("mprotect", |mm| mm.mprotect(HERE, 5 * PAGE, PROT_READ | PROT_EXEC)),
        ("mremap", |mm| {
            let to = SLOW - 8 * PAGE;
            mm.mremap(END - PAGE, PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to).map(drop)
        }),
        ("madvise", |mm| mm.madvise(SLOW, PAGE, MADV_RANDOM)),
        ("madvise of pages", |mm| mm.madvise(HERE, 5 * PAGE, MADV_DONTNEED)),
        ("mlockall", |mm| mm.mlockall(MCL_CURRENT)),
        ("mseal", |mm| mm.mseal(SLOW, PAGE, 0)),
        ("fork", |mm| mm.fork(Slow::default()).map(drop)),
    ];
    beside_each(|scope, mm, method| {
        for (number, (name, call)) in calls.into_iter().enumerate() {
            // One at a time: what one changes is what the next finds.
            if number % CALLS.len() != method as usize % CALLS.len() {
                continue;
            }
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || _ = done.send(call(mm)));
            assert!(is_done.recv_timeout(WHILE).is_err(), "{name} beside {method:?}");
        }
    });
    for (name, call) in calls {
        let mm = space();
        mm.backing().stop(Method::Protect);
        thread::scope(|scope| {
            let working = scope.spawn(|| mm.mprotect(SLOW, PAGE, PROT_READ));
            mm.backing().wait_until_one_stands();
            let (done, is_done) = mpsc::channel();
            let mm = &mm;
            scope.spawn(move || _ = done.send(call(mm)));
            assert!(is_done.recv_timeout(WHILE).is_err(), "{name}");
            mm.backing().go_on();
            working.join().unwrap().unwrap();
            let result = is_done.recv_timeout(SOON).expect("it goes on");
            assert!(result.is_ok() || name == "mremap", "{name}: {result:?}");
        });
    }
}

#[test]
fn faults_wait_where_pages_are_worked_on_and_go_on_elsewhere_in_the_mapping() {
    beside_each(|scope, mm, method| {
        let waits = matches!(method, Method::Unmap | Method::Relocate | Method::Protect);
        assert_eq!(mm.fault(SLOW + PAGE, Access::Read), Ok(()), "{method:?}");
        assert_eq!(mm.fault(SLOW - PAGE, Access::Write), Ok(()), "{method:?}");
        if waits {
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || _ = done.send(mm.fault(SLOW, Access::Read)));
            assert!(is_done.recv_timeout(WHILE).is_err(), "{method:?}");
        }
    });
}

/// Nobody waits in an edit for a fault that takes long, whether the backing has something to do or
/// only the mapping is changed which the fault is in.
#[test]
fn calls_go_on_while_one_waits_for_a_slow_fault() {
    let _watchdog = watchdog(300);
    let no_work: [(&str, Call); 7] = [
        ("a first write", |mm| mm.fault(SLOW + PAGE, Access::Write).map_err(|_| Errno::EFAULT)),
        ("madvise", |mm| mm.madvise(SLOW, PAGE, MADV_RANDOM)),
        ("madvise that populates", |mm| mm.madvise(SLOW + PAGE, PAGE, MADV_POPULATE_WRITE)),
        ("a mapping that merges", |mm| mm.mmap(END, PAGE, RW, FIXED, None, 0).map(drop)),
        ("mlock", |mm| mm.mlock(SLOW + PAGE, PAGE)),
        ("mseal", |mm| mm.mseal(SLOW, PAGE, 0)),
        ("mremap up to the mapping", |mm| {
            mm.mmap(BELOW, 2 * PAGE, RW, FIXED, None, 0)?;
            mm.mremap(BELOW, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0).map(drop)
        }),
    ];
    let beside = [Method::Fault, Method::Sync, Method::Advise];
    let work = CALLS.into_iter().filter(|(method, _)| !beside.contains(method));
    let work = work.map(|(method, call)| (format!("{method:?}"), call));
    for (name, call) in work.chain(no_work.map(|(name, call)| (name.to_owned(), call))) {
        let mm = untouched_space();
        mm.backing().stop(Method::Fault);
        thread::scope(|scope| {
            let fault = scope.spawn(|| mm.fault(SLOW, Access::Read));
            mm.backing().wait_until_one_stands();
            let stands = GoOn(mm.backing());
            let (done, is_done) = mpsc::channel();
            let mm = &mm;
            scope.spawn(move || _ = done.send(call(mm)));
            assert!(is_done.recv_timeout(WHILE).is_err(), "{name}");
            let anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
            let elsewhere = mm.mmap(3 * THERE, PAGE, RW, anonymous, None, 0).unwrap();
            mm.mprotect(elsewhere, PAGE, PROT_READ).unwrap();
            mm.munmap(elsewhere, PAGE).unwrap();
            drop(stands);
            assert_eq!(fault.join().unwrap(), Ok(()));
            assert_eq!(is_done.recv_timeout(SOON).expect("it goes on"), Ok(()), "{name}");
        });
    }
}

/// What is mapped behind a hole is merged with what grows into it.
#[test]
fn what_grows_up_to_a_mapping_waits_for_who_waits_for_its_readers() {
    let _watchdog = watchdog(300);
    let mm = untouched_space();
    mm.mmap(BELOW, 2 * PAGE, RW, FIXED, None, 0).unwrap();
    mm.backing().stop(Method::Fault);
    thread::scope(|scope| {
        let fault = scope.spawn(|| mm.fault(SLOW, Access::Read));
        mm.backing().wait_until_one_stands();
        let stands = GoOn(mm.backing());
        let protects = scope.spawn(|| mm.mprotect(SLOW + PAGE, PAGE, PROT_READ));
        thread::sleep(WHILE);
        let grows = scope.spawn(|| mm.mremap(BELOW, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0));
        thread::sleep(WHILE);
        drop(stands);
        assert_eq!(fault.join().unwrap(), Ok(()));
        assert_eq!(protects.join().unwrap(), Ok(()));
        assert_eq!(grows.join().unwrap(), Ok(BELOW));
    });
    assert_eq!(mm.lookup(HERE).unwrap().unwrap().0, BELOW..SLOW + PAGE);
}

/// All of the mapping is not locked any more, as in Linux.
#[test]
fn what_leaves_a_mapping_unlocked_waits_for_calls_on_other_pages_of_it() {
    let _watchdog = watchdog(300);
    let mm = untouched_space();
    mm.mmap(HERE, 8 * PAGE, PROT_READ, FIXED | MAP_LOCKED, None, 0).unwrap();
    mm.backing().stop(Method::Protect);
    thread::scope(|scope| {
        let protects = scope.spawn(|| mm.mprotect(SLOW, 2 * PAGE, RW));
        mm.backing().wait_until_one_stands();
        let stands = GoOn(mm.backing());
        let (done, is_done) = mpsc::channel();
        let (mm, flags) = (&mm, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
        scope.spawn(move || _ = done.send(mm.mremap(HERE, 2 * PAGE, 2 * PAGE, flags, 0)));
        assert!(is_done.recv_timeout(WHILE).is_err());
        drop(stands);
        assert_eq!(protects.join().unwrap(), Ok(()));
        let to = is_done.recv_timeout(SOON).expect("it goes on").unwrap();
        let is_locked = |addr| mm.lookup(addr).unwrap().unwrap().1.flags.has(VmFlags::LOCKED);
        // The second mapping was split off before.
        assert_eq!([to, HERE, SLOW].map(is_locked), [true, false, true]);
    });
}

/// Two threads, again and again: both results are those of one order.
#[test]
fn a_touch_is_one_step_to_calls() {
    let _watchdog = watchdog(300);
    let mm = Mm::<_, StdPlatform>::new(NoBacking, Config::default());
    let (begin, end) = (Barrier::new(2), Barrier::new(2));
    let protect: fn(&Mm<NoBacking, StdPlatform>) = |mm| mm.mprotect(HERE, PAGE, PROT_READ).unwrap();
    let cover = |mm: &Mm<NoBacking, StdPlatform>| {
        mm.mmap(HERE - 3 * PAGE, PAGE, PROT_NONE, FIXED, None, 0).map(drop).unwrap();
    };
    for round in 0..ROUNDS {
        let grows = round % 2 == 0;
        let more = if grows { MAP_GROWSDOWN } else { 0 };
        mm.mmap(HERE, PAGE, RW, FIXED | more, None, 0).unwrap();
        let touched = thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                if grows {
                    cover(&mm)
                } else {
                    protect(&mm)
                }
                end.wait();
            });
            begin.wait();
            let addr = if grows { HERE - 3 * PAGE } else { HERE };
            let touched = mm.fault(addr, Access::Write);
            end.wait();
            touched
        });
        let is_first = if grows {
            mm.lookup(HERE - PAGE).unwrap().is_some()
        } else {
            let (_, vma) = mm.lookup(HERE).unwrap().unwrap();
            assert_eq!(vma.flags.has(VmFlags::ACCOUNT), vma.anon.is_some(), "{round}");
            vma.anon.is_some()
        };
        assert_eq!(touched, if is_first { Ok(()) } else { Err(Signal::NotAllowed) }, "{round}");
        mm.munmap(HERE - 3 * PAGE, 4 * PAGE).unwrap();
    }
}

/// A thread with a guard waits for nobody, since others wait for it.
#[test]
fn a_thread_that_others_wait_for_is_refused() {
    let _watchdog = watchdog(300);
    let calls: [(&str, Call); 8] = [
        ("munmap", |mm| mm.munmap(THERE, PAGE)),
        ("mprotect", |mm| mm.mprotect(THERE, PAGE, PROT_READ)),
        ("madvise of pages", |mm| mm.madvise(THERE, PAGE, MADV_DONTNEED)),
        ("madvise that populates", |mm| mm.madvise(THERE, PAGE, MADV_POPULATE_READ)),
        ("msync", |mm| mm.msync(THERE, PAGE, MS_SYNC)),
        ("mremap", |mm| mm.mremap(THERE, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0).map(drop)),
        ("fork", |mm| mm.fork(Slow::default()).map(drop)),
        ("a first write", |mm| mm.fault(THERE, Access::Write).map_err(|_| Errno::EAGAIN)),
    ];
    for (name, call) in calls {
        let mm = space();
        mm.mmap(THERE, PAGE, RW, FIXED, None, 0).unwrap();
        let guard = mm.try_lookup(HERE).unwrap().unwrap();
        thread::scope(|scope| {
            // It has both, and waits for the guard.
            let other = scope.spawn(|| mm.munmap(HERE, THERE + PAGE - HERE));
            thread::sleep(WHILE);
            assert_eq!(call(&mm), Err(Errno::EAGAIN), "{name}");
            drop(guard);
            assert_eq!(other.join().unwrap(), Ok(()), "{name}");
        });
    }
}

/// Nor does its fault, for a call that waits for the readers of the mapping.
#[test]
fn a_fault_of_a_thread_with_a_guard_is_refused_where_a_call_works() {
    let _watchdog = watchdog(300);
    let mm = space();
    mm.backing().stop(Method::Protect);
    thread::scope(|scope| {
        let other = scope.spawn(|| mm.mprotect(SLOW, PAGE, PROT_READ));
        mm.backing().wait_until_one_stands();
        let stands = GoOn(mm.backing());
        let guard = mm.try_lookup(SLOW + PAGE).unwrap().unwrap();
        assert_eq!(mm.fault(SLOW, Access::Read), Err(Signal::OwnCall));
        assert_eq!(mm.fault(SLOW + PAGE, Access::Read), Ok(()));
        drop(stands);
        thread::sleep(WHILE);
        drop(guard);
        assert_eq!(other.join().unwrap(), Ok(()));
    });
    assert_eq!(mm.fault(SLOW, Access::Read), Ok(()));
}

/// Those that wait for one address do not send each other to the end of the queue.
#[test]
fn many_that_choose_the_same_address_all_go_on() {
    let _watchdog = watchdog(300);
    let mm = space();
    mm.backing().stop(Method::Copy);
    thread::scope(|scope| {
        let fork = scope.spawn(|| mm.fork(Slow::default()).map(drop));
        mm.backing().wait_until_one_stands();
        let stands = GoOn(mm.backing());
        let (done, are_done) = mpsc::channel();
        for _ in 0..48 {
            let (mm, done, flags) = (&mm, done.clone(), MAP_PRIVATE | MAP_ANONYMOUS);
            scope.spawn(move || _ = done.send(mm.mmap(0, PAGE, PROT_NONE, flags, None, 0)));
        }
        assert!(are_done.recv_timeout(WHILE).is_err());
        drop(stands);
        let mut ranges = BTreeSet::new();
        for _ in 0..48 {
            ranges.insert(are_done.recv_timeout(SOON).expect("they go on").unwrap());
        }
        assert_eq!(ranges.len(), 48);
        assert_eq!(fork.join().unwrap(), Ok(()));
    });
}

/// Takes a while to move pages.
struct SlowToMove;

impl Backing for SlowToMove {
    fn relocate(&self, _: Range<usize>, _: usize) {
        thread::sleep(Duration::from_micros(200));
    }
}

/// Nor do those that move to it. In release builds all of them together got nowhere.
#[test]
fn many_that_move_to_the_same_address_all_go_on() {
    const THREADS: usize = 48;
    let _watchdog = watchdog(300);
    let mm = Mm::<_, StdPlatform>::new(SlowToMove, Config::default());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (mm, at) = (&mm, THERE + thread * 16 * PAGE);
            scope.spawn(move || {
                for _ in 0..20 {
                    mm.mmap(at, PAGE, RW, FIXED, None, 0).unwrap();
                    // It cannot become longer where it is.
                    mm.mmap(at + PAGE, PAGE, PROT_NONE, FIXED, None, 0).unwrap();
                    let to = mm.mremap(at, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0).unwrap();
                    mm.munmap(to, 2 * PAGE).unwrap();
                }
            });
        }
    });
    mm.munmap(THERE, THREADS * 16 * PAGE).unwrap();
    assert_eq!(mm.counts().total, 0);
}

/// Each of many mappings that are moved over one leaves a part of that, so there are more and more.
#[test]
fn a_move_of_many_mappings_is_alone_since_it_may_come_near_a_limit() {
    let _watchdog = watchdog(300);
    const MANY: usize = 40;
    let config = Config { huge_pages: false, ..Config::default() };
    let mm = Mm::<_, StdPlatform>::new(Slow::default(), config);
    for page in 0..MANY {
        mm.mmap(HERE + 2 * page * PAGE, PAGE, RW, FIXED, None, 0).unwrap();
    }
    mm.mmap(THERE, 2 * MANY * PAGE, PROT_READ, FIXED, None, 0).unwrap();
    for page in 0..2 {
        mm.mmap(3 * THERE + 2 * page * PAGE, PAGE, RW, FIXED, None, 0).unwrap();
    }
    mm.configure(|config| config.max_map_count = 64).unwrap();
    mm.backing().stop(Method::Relocate);
    thread::scope(|scope| {
        let (mm, len) = (&mm, 2 * MANY * PAGE);
        let moves =
            scope.spawn(move || mm.mremap(HERE, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, THERE));
        mm.backing().wait_until_one_stands();
        let stands = GoOn(mm.backing());
        let (done, is_done) = mpsc::channel();
        scope.spawn(move || _ = done.send(mm.munmap(3 * THERE, PAGE)));
        assert!(is_done.recv_timeout(WHILE).is_err());
        drop(stands);
        assert_eq!(moves.join().unwrap(), Err(Errno::ENOMEM));
        assert_eq!(is_done.recv_timeout(SOON).expect("it goes on"), Ok(()));
    });
}

/// What an `mremap` has chosen, and may still add, is neither grown into nor taken.
#[test]
fn what_is_taken_over_and_stacks_that_grow_wait_for_what_is_chosen() {
    let _watchdog = watchdog(300);
    let vma = Vma {
        flags: VmFlags::READ,
        page_offset: 0,
        source: Source::Anonymous,
        anon: None,
        name: None,
    };
    for adopts in [true, false] {
        let mm = space();
        let stack = mm.mmap(0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, None, 0);
        let stack = stack.unwrap();
        let limit = (mm.counts().total + 3) * PAGE;
        mm.set_limits(Limits { address_space: limit as u64, ..mm.limits() });
        mm.backing().stop(Method::Relocate);
        thread::scope(|scope| {
            let moves = scope.spawn(|| mm.mremap(SLOW, PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0));
            mm.backing().wait_until_one_stands();
            let stands = GoOn(mm.backing());
            let (done, is_done) = mpsc::channel();
            let (mm, vma) = (&mm, vma.clone());
            scope.spawn(move || {
                let result = if adopts {
                    mm.adopt(THERE..THERE + 3 * PAGE, vma)
                } else {
                    mm.fault(stack - 3 * PAGE, Access::Read).map_err(|_| Errno::EFAULT)
                };
                _ = done.send(result);
            });
            assert!(is_done.recv_timeout(WHILE).is_err(), "{adopts}");
            drop(stands);
            let to = moves.join().unwrap().unwrap();
            let expected = if adopts { Ok(()) } else { Err(Errno::EFAULT) };
            assert_eq!(is_done.recv_timeout(SOON).expect("it goes on"), expected);
            assert_eq!(to, stack - 256 * PAGE - 4 * PAGE);
        });
    }
}

#[test]
fn a_call_whose_backing_refuses_leaves_nothing_changed() {
    let calls: [(&str, Call); 7] = [
        ("munmap", |mm| mm.munmap(SLOW, 8 * PAGE)),
        ("mmap", |mm| mm.mmap(SLOW, 8 * PAGE, PROT_NONE, FIXED, None, 0).map(drop)),
        ("mprotect of several", |mm| mm.mprotect(HERE, END - HERE, PROT_EXEC)),
        ("mremap", |mm| {
            let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
            mm.mremap(HERE, 2 * PAGE, 2 * PAGE, flags, SLOW).map(drop)
        }),
        ("mremap that moves", |mm| {
            mm.mremap(HERE, 2 * PAGE, 64 * PAGE, MREMAP_MAYMOVE, 0).map(drop)
        }),
        ("mremap that shrinks", |mm| mm.mremap(HERE, 4 * PAGE, PAGE, 0, 0).map(drop)),
        ("brk", |mm| {
            let heap = mm.config().layout.start_brk;
            if mm.brk(heap) == heap { Ok(()) } else { Err(Errno::ENOMEM) }
        }),
    ];
    for strict in [false, true] {
        for (name, call) in calls {
            let mm = Mm::new(Slow::default(), Config { strict, ..Config::default() });
            mm.mmap(HERE, END - HERE, RW, FIXED, None, 0).unwrap();
            mm.fault(HERE, Access::Write).unwrap();
            let heap = mm.brk(0);
            mm.brk(heap + 4 * PAGE);
            mm.mprotect(HERE + 8 * PAGE, PAGE, PROT_READ).unwrap();
            let seen = || (mm.maps().unwrap(), mm.counts(), mm.config());
            let before = seen();
            *mm.backing().refuses.lock().unwrap() = true;
            assert_eq!(call(&mm), Err(Errno::ENOMEM), "{name}");
            assert_eq!(seen(), before, "{name}");
            *mm.backing().refuses.lock().unwrap() = false;
            assert_eq!(call(&mm), Ok(()), "{name}");
            assert_ne!(seen(), before, "{name}");
        }
    }
}

/// The limit of mappings would allow each of two calls alone. The second waits for the first, and
/// is then refused as if the first had come before.
#[test]
fn what_an_unfinished_call_will_add_is_not_given_to_another() {
    let _watchdog = watchdog(300);
    let mm = space();
    mm.configure(|config| config.max_map_count = 3).unwrap();
    mm.backing().stop(Method::Protect);
    thread::scope(|scope| {
        // Two more, in the middle.
        let working = scope.spawn(|| mm.mprotect(SLOW, PAGE, PROT_READ));
        mm.backing().wait_until_one_stands();
        let (done, is_done) = mpsc::channel();
        let mm = &mm;
        scope.spawn(move || {
            done.send(mm.mprotect(END - 2 * PAGE, PAGE, PROT_READ)).unwrap();
        });
        assert!(is_done.recv_timeout(WHILE).is_err());
        mm.backing().go_on();
        assert_eq!(working.join().unwrap(), Ok(()));
        assert_eq!(is_done.recv_timeout(SOON).expect("it goes on"), Err(Errno::ENOMEM));
    });
    assert_eq!(mm.maps().unwrap().lines().count(), 3);

    // Pages: memory becomes data by one call, is mapped by the other.
    let mm = space();
    mm.mprotect(HERE, END - HERE, PROT_READ).unwrap();
    mm.set_limits(Limits { data: 20 * PAGE as u64, ..mm.limits() });
    mm.backing().stop(Method::Protect);
    thread::scope(|scope| {
        let working = scope.spawn(|| mm.mprotect(HERE, END - HERE, RW));
        mm.backing().wait_until_one_stands();
        let (done, is_done) = mpsc::channel();
        let mm = &mm;
        scope.spawn(move || {
            let mapped = mm.mmap(0, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, None, 0);
            done.send(mapped).unwrap();
        });
        assert!(is_done.recv_timeout(WHILE).is_err());
        mm.backing().go_on();
        assert_eq!(working.join().unwrap(), Ok(()));
        assert_eq!(is_done.recv_timeout(SOON).expect("it goes on"), Err(Errno::ENOMEM));
    });
    assert_eq!(mm.counts().data, 16);
}

#[test]
fn a_backing_that_panics_leaves_its_addresses_to_others() {
    let _watchdog = watchdog(300);
    for (method, call) in CALLS {
        let mm = space();
        *mm.backing().panics.lock().unwrap() = true;
        assert!(catch_unwind(AssertUnwindSafe(|| call(&mm))).is_err(), "{method:?}");
        *mm.backing().panics.lock().unwrap() = false;
        thread::scope(|scope| {
            let other = scope.spawn(|| mm.mprotect(HERE, 8 * PAGE, PROT_READ));
            let result = other.join().unwrap();
            assert!(result.is_ok(), "{method:?}: {result:?}");
        });
        assert_eq!(mm.fault(SLOW, Access::Read), Ok(()), "{method:?}");
    }
}
