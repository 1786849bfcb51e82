//! The machine and the process change while the map is in use: what is mapped stays, and the next
//! call goes by what is so then. What can be changed for one process is compared with the kernel,
//! by `pervma differ`; settings of the machine hold for all processes, so they are tested here.
#![expect(clippy::disallowed_types, reason = "a test has no ledger")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use pervma_linux::{
    Access, Backing, Config, Errno, Layout, Limits, Mm, NoBacking, Part, StdPlatform, VmFlags,
    abi::*,
};

const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS;
const ADDR: usize = 0x1000_0000;

type Space = Mm<NoBacking, StdPlatform>;

/// Maps a page with a hole on either side.
fn map(mm: &Space, number: usize) -> Result<usize, Errno> {
    let addr = ADDR + 2 * number * PAGE;
    mm.mmap(addr, PAGE, PROT_READ | PROT_WRITE, ANONYMOUS | MAP_FIXED, None, 0)
}

#[test]
fn more_mappings_than_may_be_stay_and_none_is_added() {
    let mm = Mm::new(NoBacking, Config::default());
    (0..10).for_each(|number| _ = map(&mm, number).unwrap());
    mm.mmap(ADDR + 40 * PAGE, 3 * PAGE, PROT_READ, ANONYMOUS | MAP_FIXED, None, 0).unwrap();
    mm.configure(|config| config.max_map_count = 5).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 11);
    let middle = ADDR + 41 * PAGE;
    assert_eq!(map(&mm, 12), Err(Errno::ENOMEM));
    assert_eq!(map(&mm, 3), Err(Errno::ENOMEM), "even over another one");
    assert_eq!(mm.munmap(middle, PAGE), Err(Errno::ENOMEM), "a split");
    assert_eq!(mm.mprotect(middle, PAGE, PROT_NONE), Err(Errno::ENOMEM), "a split");
    assert_eq!(mm.mprotect(ADDR, PAGE, PROT_READ), Ok(()));
    let heap = mm.brk(0);
    assert_eq!(mm.brk(heap + PAGE), heap);
    // A fork asks for no limit; the child has the same.
    let child = mm.fork(NoBacking).unwrap();
    assert_eq!((child.config().max_map_count, child.counts()), (5, mm.counts()));
    mm.munmap(ADDR, 14 * PAGE).unwrap();
    assert_eq!(map(&mm, 0), Ok(ADDR));
    mm.configure(|config| config.max_map_count = 65530).unwrap();
    assert_eq!(mm.munmap(middle, PAGE), Ok(()));
    assert_eq!(child.munmap(middle, PAGE), Err(Errno::ENOMEM), "it has its own configuration");
}

#[test]
fn what_was_committed_stays_and_less_is_committed_at_once() {
    let mm = Mm::new(NoBacking, Config::default());
    let prot = PROT_READ | PROT_WRITE;
    let map = |len| mm.mmap(0, len, prot, ANONYMOUS, None, 0);
    let addr = map(1 << 40).unwrap();
    mm.fault(addr, Access::Write).unwrap();
    mm.configure(|config| config.commit_limit = 1 << 20).unwrap();
    assert_eq!(map((1 << 32) + PAGE), Err(Errno::ENOMEM));
    assert_eq!(mm.mprotect(addr, 1 << 40, PROT_READ), Ok(()));
    assert_eq!(mm.mprotect(addr, 1 << 40, prot), Ok(()), "it is still committed");
    assert_eq!(mm.fork(NoBacking).err(), Some(Errno::ENOMEM), "it would be once more");
    assert!(map(1 << 32).is_ok());
}

#[test]
fn low_addresses_are_given_free_and_taken_back() {
    let mm = Mm::new(NoBacking, Config::default());
    let fixed = |addr| mm.mmap(addr, PAGE, PROT_READ, ANONYMOUS | MAP_FIXED, None, 0);
    assert_eq!(fixed(2 * PAGE), Err(Errno::EPERM));
    mm.configure(|config| (config.mmap_min_addr, config.lowest_choice) = (PAGE, PAGE)).unwrap();
    assert_eq!(fixed(2 * PAGE), Ok(2 * PAGE));
    assert_eq!(mm.mmap(1, PAGE, PROT_READ, ANONYMOUS, None, 0).map(|addr| addr >> 32), Ok(0x7fff));
    mm.configure(|config| (config.mmap_min_addr, config.lowest_choice) = (1 << 16, 1 << 16))
        .unwrap();
    assert_eq!((fixed(2 * PAGE), mm.counts().total), (Err(Errno::EPERM), 2));
    assert_eq!(mm.mprotect(2 * PAGE, PAGE, PROT_NONE), Ok(()), "it is still there");
    assert_eq!(mm.mmap(PAGE, PAGE, PROT_READ, ANONYMOUS, None, 0), Ok(1 << 16), "a hint");
}

#[test]
fn the_layout_is_no_setting() {
    let mm = Mm::new(NoBacking, Config::default());
    let before = mm.config();
    let changes: [fn(&mut Layout); 4] = [
        |layout| layout.task_size = 1 << 40,
        |layout| layout.mmap_base -= PAGE,
        |layout| layout.brk += PAGE,
        |layout| layout.start_stack += 8,
    ];
    for change in changes {
        let changed = mm.configure(|config| {
            config.strict = true;
            change(&mut config.layout);
        });
        assert_eq!((changed, mm.config()), (Err(Errno::EINVAL), before), "nothing has changed");
    }
    let heap = mm.brk(mm.brk(0) + 5 * PAGE);
    assert_eq!(mm.config(), Config { layout: Layout { brk: heap, ..before.layout }, ..before });
}

#[test]
fn a_call_of_another_thread_loses_no_setting_and_moves_no_heap() {
    let mm = Mm::new(NoBacking, Config { may_set_addresses: true, ..Config::default() });
    let heap = mm.brk(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                assert_eq!(mm.brk(heap + PAGE), heap + PAGE);
                assert_eq!(mm.brk(heap), heap);
                map(&mm, 0).unwrap();
            }
        });
        for turn in 0..20_000 {
            let locked = turn;
            mm.set_limits(Limits { locked, ..mm.limits() });
            mm.configure(|config| config.may_lock = turn % 2 == 0).unwrap();
            let now = mm.config();
            assert_eq!((now.limits.locked, now.may_lock), (locked, turn % 2 == 0));
        }
        over.store(true, Relaxed);
    });
    assert_eq!(mm.config().layout.brk, heap);
    assert_eq!(mm.set_address(PR_SET_MM_START_BRK, heap - PAGE), Ok(()));
    assert_eq!(mm.brk(heap - PAGE / 2), heap - PAGE / 2);
}

/// A backing that forbids further mappings while it works for a call.
#[derive(Default)]
struct Forbids(OnceLock<Weak<Mm<Forbids, StdPlatform>>>);

impl Backing for Forbids {
    fn unmap(&self, _: Range<usize>) {
        let mm = self.0.get().and_then(Weak::upgrade).unwrap();
        mm.configure(|config| config.max_map_count = 1).unwrap();
    }
}

#[test]
fn a_call_under_way_ends_as_it_was_decided_and_the_next_goes_by_the_setting() {
    for strict in [false, true] {
        let mm = Arc::new(Mm::new(Forbids::default(), Config { strict, ..Config::default() }));
        mm.backing().0.set(Arc::downgrade(&mm)).unwrap();
        let map = |len| mm.mmap(ADDR, len, PROT_READ, ANONYMOUS | MAP_FIXED, None, 0);
        map(7 * PAGE).unwrap();
        assert_eq!(mm.munmap(ADDR + PAGE, PAGE), Ok(()), "it splits a mapping, as it might");
        assert_eq!((mm.config().max_map_count, mm.counts().total), (1, 6));
        let splits = mm.munmap(ADDR + 4 * PAGE, PAGE);
        assert_eq!((splits, mm.counts().total), (Err(Errno::ENOMEM), 6));
        assert_eq!(mm.config(), Config { strict, max_map_count: 1, ..Config::default() });
        mm.configure(|config| config.max_map_count = 9).unwrap();
        assert_eq!(mm.munmap(ADDR + 4 * PAGE, PAGE), Ok(()));
    }
}

/// A backing that notes what is moved, and takes its time.
#[derive(Default)]
struct Moves(Mutex<Vec<(usize, usize)>>);

impl Backing for Moves {
    fn relocate(&self, from: Range<usize>, to: usize) {
        self.0.lock().unwrap().push((from.start, to));
        thread::sleep(Duration::from_millis(40));
    }
}

#[test]
fn pages_are_moved_to_where_the_mapping_goes_when_calls_cease_to_be_all_or_nothing() {
    let mm = Mm::new(Moves::default(), Config { strict: true, ..Config::default() });
    let map = |addr, len, fixed| mm.mmap(addr, len, PROT_READ, ANONYMOUS | fixed, None, 0).unwrap();
    map(ADDR, 2 * PAGE, MAP_FIXED);
    let (looks, moved, other) = thread::scope(|scope| {
        // Whoever looks at the map keeps the call, which has seen that it is strict, from its edit.
        let (begun, begins) = mpsc::channel();
        let mm = &mm;
        let looks = scope.spawn(move || {
            mm.for_each(|_, _| {
                begun.send(()).unwrap();
                thread::sleep(Duration::from_millis(40));
            })
        });
        begins.recv().unwrap();
        let moved = scope.spawn(|| mm.mremap(ADDR, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0).unwrap());
        thread::sleep(Duration::from_millis(10));
        mm.configure(|config| config.strict = false).unwrap();
        while mm.backing().0.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        let other = map(0, 2 * PAGE, 0);
        (looks.join().unwrap(), moved.join().unwrap(), other)
    });
    looks.unwrap();
    assert_ne!(other, moved);
    assert_eq!(*mm.backing().0.lock().unwrap(), [(ADDR, moved)]);
}

/// A backing that has guard pages marked in another way while it works for a call.
#[derive(Default)]
struct Relearns(OnceLock<Weak<Mm<Relearns, StdPlatform>>>);

impl Relearns {
    fn learn(&self) {
        let mm = self.0.get().and_then(Weak::upgrade).unwrap();
        mm.configure(|config| (config.marks_guards, config.may_lock) = (false, true)).unwrap();
    }
}

impl Backing for Relearns {
    fn advise(&self, _: Part<'_>, _: i32) -> Result<(), Errno> {
        self.learn();
        Ok(())
    }

    fn copy(&self, _: Part<'_>, _: &Self) {
        self.learn();
    }
}

#[test]
fn a_call_about_several_mappings_goes_by_one_setting_throughout() {
    let mm = Arc::new(Mm::new(Relearns::default(), Config::default()));
    mm.backing().0.set(Arc::downgrade(&mm)).unwrap();
    for (number, prot) in [PROT_READ | PROT_WRITE, PROT_READ].into_iter().enumerate() {
        mm.mmap(ADDR + number * PAGE, PAGE, prot, ANONYMOUS | MAP_FIXED, None, 0).unwrap();
    }
    mm.madvise(ADDR, 2 * PAGE, MADV_GUARD_INSTALL).unwrap();
    let mut seen = Vec::new();
    mm.for_each(|_, vma| seen.push(vma.flags.has(VmFlags::MAYBE_GUARD))).unwrap();
    assert_eq!(seen, [true; 2]);
    assert!(!mm.config().marks_guards, "the next call goes by it");

    mm.configure(|config| (config.marks_guards, config.may_lock) = (true, false)).unwrap();
    let child = mm.fork(Relearns::default()).unwrap();
    assert_eq!((child.config().marks_guards, child.config().may_lock), (true, false));
    assert!(mm.config().may_lock);
}
