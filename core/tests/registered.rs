//! Registered readers: what they hold does not change, a thread that waits for them is woken, and
//! they count what they cannot publish.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{Calls, Delegate, Watched, watchdog};
use pervma::{
    AddressSpace, HandlerScope, Payload, Platform, ReadError, RegisterError, Slab, StdPlatform,
    WriteError,
};

/// Without a barrier: readers fence.
enum NoBarrier {}

impl Watched for NoBarrier {
    const BARRIER: bool = false;

    fn calls() -> &'static Calls {
        static CALLS: Calls = Calls::none();
        &CALLS
    }
}

/// Readers leave out their fences where the system lets them.
enum Barriers {}

impl Watched for Barriers {
    fn calls() -> &'static Calls {
        static CALLS: Calls = Calls::none();
        &CALLS
    }
}

/// How often something is done.
const TURNS: u64 = if cfg!(miri) { 15 } else { 5_000 };

/// Words that are all equal, unless half of a change is seen.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Words([u64; 6]);

impl Payload for Words {
    fn split(&self, _: usize) -> Option<(Self, Self)> {
        Some((*self, *self))
    }

    fn merge(&self, _: usize, next: &Self) -> Option<Self> {
        (self == next).then_some(*self)
    }
}

fn one_vma<P: Platform>() -> AddressSpace<Words, P> {
    let space = AddressSpace::with_platform(1);
    space.edit().unwrap().insert(10..20, Words([0; 6])).unwrap();
    space
}

/// Readers come and go, registered and not, while the VMA is changed in all ways.
fn contend<P: Platform>() {
    let space = &one_vma::<P>();
    let (stop, read) = (&AtomicBool::new(false), &AtomicU64::new(0));
    thread::scope(|scope| {
        for which in 0..3 {
            scope.spawn(move || {
                let check = |vma: &Words| {
                    assert!(vma.0.iter().all(|word| *word == vma.0[0]), "torn: {vma:?}");
                    read.fetch_add(1, Relaxed);
                };
                while !stop.load(Relaxed) {
                    if which == 2 {
                        space.read(15).map(|vma| check(&vma)).unwrap();
                        thread::yield_now(); // else the editor may wait long for the lock
                        continue;
                    }
                    let reader = space.register().unwrap();
                    let mut cursor = reader.cursor();
                    for lookup in 0..100 {
                        if let Ok(vma) = cursor.try_read(15) {
                            check(&vma);
                        }
                        if let Ok(vma) = reader.try_read(15) {
                            check(&vma);
                        }
                        if which == 1 && lookup % 25 == 0 {
                            thread::sleep(IDLE); // edits find it idle, but where they are slow
                        }
                    }
                    reader.read(15).map(|vma| check(&vma)).unwrap();
                }
            });
        }
        for turn in 0.. {
            // Until the readers have come to run, too.
            if turn >= TURNS && read.load(Relaxed) >= TURNS {
                break;
            }
            match turn % 5 {
                0 => {
                    space.update(10..20, |_, words| Words(words.0.map(|word| word + 1))).unwrap();
                }
                1 => {
                    // A change of what is not copied: its words differ meanwhile.
                    if let Ok(mut vma) = space.edit().unwrap().try_write(15) {
                        vma.0.iter_mut().for_each(|word| *word += 1);
                    }
                }
                2 => drop(space.exclude(10..20).unwrap()),
                3 => {
                    let mut edit = space.edit().unwrap();
                    let was = edit.remove(10..20).unwrap();
                    edit.insert(10..20, was[0].payload).unwrap();
                }
                _ => {
                    let mut edit = space.edit().unwrap();
                    edit.write(15).unwrap().0.iter_mut().for_each(|word| *word += 1);
                }
            }
        }
        stop.store(true, Relaxed);
    });
    assert!(space.edit().unwrap().try_write(15).is_ok(), "a reader is counted that has gone");
}

/// Many times as long as an edit takes.
const IDLE: Duration = Duration::from_micros(500);

/// Edits that find nothing in a record, and more than enough to take it for idle.
const IDLE_EDITS: usize = 20;

/// Changes the VMA that `addr` is in, often; says for how many barriers of all threads that asked.
fn barriers_of_edits<W: Watched>(space: &AddressSpace<Words, Delegate<W>>, addr: usize) -> usize {
    let before = W::calls().barriers.load(Relaxed);
    for _ in 0..IDLE_EDITS {
        drop(space.edit().unwrap().write(addr).unwrap());
    }
    W::calls().barriers.load(Relaxed) - before
}

/// Whether another thread finds a reader in the VMA that `addr` is in.
fn has_reader<P: Platform>(space: &AddressSpace<Words, P>, addr: usize) -> bool {
    thread::scope(|scope| {
        let refused = || space.edit().unwrap().try_write(addr).is_err();
        scope.spawn(refused).join().unwrap()
    })
}

#[test]
fn edits_ask_for_no_barrier_because_of_idle_readers() {
    let _watchdog = watchdog();
    if !StdPlatform::prepare_barrier() {
        return; // readers fence
    }
    let space = one_vma::<Delegate<Barriers>>();
    space.insert(30..40, Words([0; 6])).unwrap();
    assert_eq!(barriers_of_edits(&space, 15), 0, "no reader");
    let reader = space.register().unwrap();
    for _ in 0..3 {
        let asked = barriers_of_edits(&space, 15);
        assert!((1..IDLE_EDITS).contains(&asked), "{asked} barriers");
        assert_eq!(barriers_of_edits(&space, 15), 0, "the reader is idle");
        // The first lookup counts; the others publish again.
        for _ in 0..3 {
            let guard = reader.try_read(15).unwrap();
            assert!(has_reader(&space, 15));
            drop(guard);
            assert!(!has_reader(&space, 15));
        }
    }
    // A guard keeps its record busy, whichever others come and go.
    let guard = reader.try_read(35).unwrap();
    for _ in 0..2 {
        thread::scope(|scope| {
            scope.spawn(|| drop(space.register().unwrap().try_read(15))).join().unwrap();
            let asked = scope.spawn(|| barriers_of_edits(&space, 15)).join().unwrap();
            assert_eq!(asked, IDLE_EDITS, "the reader holds a guard");
        });
        assert!(has_reader(&space, 35));
    }
    drop(guard);
    barriers_of_edits(&space, 15);
    assert_eq!(barriers_of_edits(&space, 15), 0, "the reader is idle");
    drop(reader);
    assert_eq!(barriers_of_edits(&space, 15), 0, "no reader");
    let reader = space.register().unwrap();
    assert_ne!(barriers_of_edits(&space, 15), 0, "the next owner of the record");
    drop(reader);
}

#[test]
fn registered_readers_and_writers_of_one_vma() {
    let _watchdog = watchdog();
    contend::<StdPlatform>();
}

#[test]
fn registered_readers_that_fence() {
    let _watchdog = watchdog();
    contend::<Delegate<NoBarrier>>();
}

#[test]
fn registered_readers_of_spaces_that_share_a_slab() {
    let _watchdog = watchdog();
    let slab = Arc::new(Slab::new());
    let spaces = &[0, 1].map(|_| AddressSpace::new_in(1, Arc::clone(&slab)));
    let (stop, read) = (&AtomicBool::new(false), &AtomicU64::new(0));
    thread::scope(|scope| {
        let readers = [0, 1].map(|mine: usize| {
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let reader = spaces[mine].register().unwrap();
                    let mut cursor = reader.cursor();
                    for _ in 0..50 {
                        match cursor.try_read(15) {
                            Ok(vma) => assert_eq!(*vma, mine, "another space's"),
                            Err(ReadError::NotMapped { .. } | ReadError::Locked { .. }) => continue,
                            Err(error) => panic!("{error}"),
                        }
                        read.fetch_add(1, Relaxed);
                    }
                }
            })
        });
        // The slot goes from space to space, and each has readers that know it.
        for mine in [0, 1].into_iter().cycle().take(TURNS as usize / 2) {
            let before = read.load(Relaxed);
            spaces[mine].edit().unwrap().insert(10..20, mine).unwrap();
            for _ in 0..10 {
                if read.load(Relaxed) == before {
                    thread::yield_now();
                }
            }
            spaces[mine].edit().unwrap().remove(10..20).unwrap();
            if readers.iter().any(thread::ScopedJoinHandle::is_finished) {
                break; // it has panicked
            }
        }
        stop.store(true, Relaxed);
    });
    assert!(read.load(Relaxed) > 0);
    assert_eq!(slab.vmas().capacity, 1);
}

#[test]
fn guards_beyond_the_hazard_pointers_are_counted() {
    let _watchdog = watchdog();
    let space = one_vma::<StdPlatform>();
    let reader = space.register().unwrap();
    let mut guards: Vec<_> = (0..7).map(|_| reader.try_read(15).unwrap()).collect();
    thread::scope(|scope| {
        let (ask, asked) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        let space = &space;
        let waiter = scope.spawn(move || {
            let exclusion = space.exclude(10..20).unwrap();
            for () in asked {
                let readers: u32 = exclusion.waits_for().map(|(_, readers)| readers).sum();
                answer.send((readers, exclusion.wait_until(Instant::now()))).unwrap();
            }
            exclusion.remove().unwrap().len()
        });
        // From the middle: one that was published, or one that was counted.
        for left in (0..=guards.len()).rev() {
            ask.send(()).unwrap();
            assert_eq!(answered.recv().unwrap(), (left as u32, left == 0));
            if left != 0 {
                drop(guards.remove(guards.len() / 2));
            }
        }
        drop(ask);
        assert_eq!(waiter.join().unwrap(), 1);
    });
    assert_eq!(reader.try_read(15).unwrap_err(), ReadError::NotMapped { addr: 15 });
}

#[test]
fn a_lookup_that_is_refused_leaves_the_guards_before_it() {
    let dog = watchdog();
    for held in 1..6 {
        let space = one_vma::<StdPlatform>();
        let reader = space.register().unwrap();
        let guards: Vec<_> = (0..held).map(|_| reader.try_read(15).unwrap()).collect();
        thread::scope(|scope| {
            let removal = scope.spawn(|| space.remove(10..20).unwrap().len());
            dog.until(|| reader.try_read(15).is_err());
            // What was published last was retracted, and nothing else.
            for _ in 0..10 {
                assert_eq!(reader.try_read(15).unwrap_err(), ReadError::Locked { addr: 15 });
            }
            assert!(!removal.is_finished(), "{held} guards are held");
            drop(guards);
            assert_eq!(removal.join().unwrap(), 1);
        });
    }
}

#[test]
fn a_reservation_is_committed_when_registered_readers_have_seen_it() {
    let _watchdog = watchdog();
    let space = one_vma::<StdPlatform>();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = space.register().unwrap();
            while !stop.load(Relaxed) {
                match reader.try_read(35) {
                    Ok(vma) => assert_eq!(vma.range(), 30..40),
                    Err(ReadError::NotMapped { .. } | ReadError::Locked { .. }) => {}
                    Err(ReadError::Reserved { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for _ in 0..TURNS {
            let mut reservation = space.edit().unwrap().reserve(30..40).unwrap();
            reservation.commit(Words([7; 6])).unwrap();
            space.edit().unwrap().remove(30..40).unwrap();
            drop(space.edit().unwrap().reserve(30..40).unwrap());
        }
        stop.store(true, Relaxed);
    });
}

#[test]
fn a_vma_is_not_idle_while_a_registered_reader_has_it() {
    let _watchdog = watchdog();
    let space = one_vma::<StdPlatform>();
    let reader = space.register().unwrap();
    let vma = reader.try_read(15).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut edit = space.edit().unwrap();
            for _ in 0..3 {
                let refused = edit.try_write(15).err();
                assert_eq!(refused, Some(WriteError::WouldWait { addr: 15 }));
            }
        });
    });
    assert_eq!(reader.try_read(15).unwrap().range(), 10..20, "nothing has changed for readers");
    drop(vma);
    assert!(space.edit().unwrap().try_write(15).is_ok());
    // Nor is a neighbour merged that has a reader.
    space.edit().unwrap().insert(20..30, Words([1; 6])).unwrap();
    let vma = reader.try_read(15).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| space.update(20..30, |_, _| Words([0; 6])).unwrap());
    });
    assert_eq!(vma.range(), 10..20);
}

#[test]
fn a_thread_that_would_wait_for_itself_is_not_registered() {
    let _watchdog = watchdog();
    let space = one_vma::<StdPlatform>();
    let edit = space.edit().unwrap();
    assert_eq!(space.register().unwrap_err(), RegisterError::OwnEdit);
    drop(edit);
    let vma = space.try_read(15).unwrap();
    assert_eq!(space.register().unwrap_err(), RegisterError::GuardHeld);
    drop(vma);
    // A registered reader's guard is one as well.
    let reader = space.register().unwrap();
    let vma = reader.try_read(15).unwrap();
    assert!(space.edit().is_err() && space.register().is_err());
    drop(vma);
    // And one thread can have several.
    let another = space.register().unwrap();
    let guards = [reader.try_read(15).unwrap(), another.try_read(15).unwrap()];
    drop(guards);
    drop((reader, another));
    let scope = HandlerScope::<StdPlatform>::enter();
    let registered = catch_unwind(AssertUnwindSafe(|| space.register().is_ok()));
    drop(scope);
    assert!(registered.is_err(), "it would have waited");
}

#[test]
#[cfg_attr(miri, ignore = "leaks on purpose")]
fn a_forgotten_guard_keeps_its_vma_also_if_others_register() {
    let _watchdog = watchdog();
    let space = one_vma::<StdPlatform>();
    let reader = space.register().unwrap();
    // In a hazard pointer after the first, which is free again when the reader's guard is dropped.
    let first = reader.try_read(15).unwrap();
    mem::forget(reader.try_read(15).unwrap());
    drop(first);
    drop(reader);
    // The thread's record of its guards has it, too.
    thread::scope(|scope| {
        scope.spawn(|| {
            let next = space.register().unwrap();
            assert!(next.try_read(15).is_ok());
            drop(next);
            assert!(!space.exclude(10..20).unwrap().is_drained());
            let refused = space.edit().unwrap().try_write(15).err();
            assert_eq!(refused, Some(WriteError::WouldWait { addr: 15 }));
        });
    });
    mem::forget(space); // its end would wait for the guard
}

#[test]
fn a_copy_and_the_end_of_a_space_wait_for_registered_readers() {
    let dog = watchdog();
    let slab = Arc::new(Slab::new());
    let parent = AddressSpace::new_in(1, Arc::clone(&slab));
    for start in (0..100).step_by(10) {
        parent.edit().unwrap().insert(start..start + 5, start).unwrap();
    }
    let reader = parent.register().unwrap();
    let vma = reader.try_read(50).unwrap();
    let child = thread::scope(|scope| {
        let fork = scope.spawn(|| parent.edit().unwrap().fork(|_, start| Some(*start)).unwrap());
        dog.until(|| reader.try_read(0).is_err()); // all of them are excluded
        assert!(!fork.is_finished() && *vma == 50);
        drop(vma);
        fork.join().unwrap()
    });
    assert_eq!(child.view().unwrap().iter().count(), 10);
    drop(reader);
    drop((parent, child));
    assert_eq!(slab.vmas().in_use, 0);
}
