//! Locks of address ranges.
#![expect(clippy::disallowed_types, reason = "a test has no ledger")]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use pervma::{AddressSpace, HandlerScope, RangeLocks, StdPlatform};

/// Long enough for a thread that need not wait.
const SOON: Duration = Duration::from_secs(60);
/// Long enough to see that a thread waits.
const WHILE: Duration = Duration::from_millis(30);

#[test]
fn ranges_with_a_common_address_take_turns_and_others_do_not() {
    let locks = RangeLocks::new();
    let held = locks.lock_pair([10..20, 50..60]).unwrap();
    for free in [0..10, 20..50, 60..70, usize::MAX - 1..usize::MAX, 15..15] {
        assert!(locks.is_free(free.clone()));
        assert!(locks.try_lock(free).is_some());
    }
    for taken in [0..11, 19..20, 20..51, 59..70, 12..13, 0..usize::MAX] {
        assert!(!locks.is_free(taken.clone()));
        assert!(locks.try_lock(taken).is_none());
    }
    drop(held);
    assert!(locks.is_free(0..usize::MAX));
}

#[test]
fn who_has_asked_first_comes_first() {
    let locks = RangeLocks::new();
    let held = locks.lock(10..20).unwrap();
    thread::scope(|scope| {
        let (order, seen) = mpsc::channel();
        // The second waits for the first that waits, and not for what is held.
        for (number, range) in [(1, 15..40), (2, 30..50)] {
            let (order, locks) = (order.clone(), &locks);
            let asked = range.start + 10..range.end;
            scope.spawn(move || {
                let _lock = locks.lock(range).unwrap();
                order.send(number).unwrap();
            });
            while locks.is_free(asked.clone()) {
                thread::yield_now();
            }
        }
        assert!(seen.recv_timeout(WHILE).is_err());
        drop(held);
        assert_eq!([seen.recv_timeout(SOON), seen.recv_timeout(SOON)], [Ok(1), Ok(2)]);
    });
}

#[test]
fn a_thread_with_a_lock_does_not_wait() {
    let locks = RangeLocks::new();
    let mine = locks.lock(10..20).unwrap();
    assert!(locks.lock(15..30).is_err());
    assert!(locks.lock(30..40).is_ok(), "it need not wait");
    mine.close();
    assert!(locks.wait_until_open(12).is_err());
    assert!(locks.wait_until_open(20).is_ok());
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let theirs = locks.lock(50..60).unwrap();
            assert!(locks.lock(10..11).is_err(), "two such threads could wait for each other");
            drop(theirs);
            assert_eq!(locks.try_has_own(), Some(false));
        });
        other.join().unwrap();
    });
    assert_eq!(locks.try_has_own(), Some(true));
    drop(mine);
    assert!(locks.is_free(0..usize::MAX), "who was refused has left nothing");
}

#[test]
fn closed_ranges_are_closed_until_the_last_is_open() {
    let locks = RangeLocks::new();
    let closed = |addr| (locks.is_closed(addr), locks.try_is_closed(addr));
    let (one, two) = (locks.lock(10..20).unwrap(), locks.lock_pair([30..40, 60..70]).unwrap());
    assert_eq!(closed(10), (false, Some(false)));
    one.close();
    one.close();
    two.close();
    for (addr, is_closed) in [(9, false), (10, true), (19, true), (20, false), (65, true)] {
        assert_eq!(closed(addr), (is_closed, Some(is_closed)), "{addr}");
    }
    drop(one);
    assert_eq!((closed(10).0, closed(35).0), (false, true));
    thread::scope(|scope| {
        let (opened, open) = mpsc::channel();
        let locks = &locks;
        scope.spawn(move || {
            locks.wait_until_open(35).unwrap();
            opened.send(()).unwrap();
        });
        assert!(open.recv_timeout(WHILE).is_err());
        drop(two);
        open.recv_timeout(SOON).unwrap();
    });
    assert!(!locks.is_closed(usize::MAX));
}

#[test]
fn a_reader_is_kept_out_of_a_closed_range_only() {
    let (space, locks) = (AddressSpace::new(1), RangeLocks::new());
    space.insert(0..100, "VMA").unwrap();
    let (inside, over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (over, locks, space, inside) = (&over, &locks, &space, &inside);
        let readers: Vec<_> = [10, 90]
            .map(|addr| {
                scope.spawn(move || {
                    let mut reads = 0;
                    while over.load(Ordering::Relaxed) == 0 || reads < 100 {
                        let Ok(_vma) = space.try_read(addr) else { continue };
                        if !locks.is_closed(addr) {
                            inside.fetch_add(usize::from(addr == 10), Ordering::Relaxed);
                            reads += 1;
                            inside.fetch_sub(usize::from(addr == 10), Ordering::Relaxed);
                        }
                    }
                })
            })
            .into();
        for _ in 0..2_000 {
            let lock = locks.lock(0..20).unwrap();
            lock.close();
            drop(space.edit().unwrap().write(10).unwrap());
            for _ in 0..10 {
                assert_eq!(inside.load(Ordering::Relaxed), 0);
            }
            drop(lock);
        }
        over.store(1, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// Many more threads than the table has places, of which none is lost.
#[test]
fn as_many_as_there_are_get_their_turn() {
    const THREADS: usize = 80;
    const ROUNDS: usize = 50;
    let (locks, all) = (RangeLocks::new(), Barrier::new(THREADS));
    let counts: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (locks, all, counts) = (&locks, &all, &counts);
            scope.spawn(move || {
                all.wait();
                for round in 0..ROUNDS {
                    let at = (thread * 7 + round * 3) % 8;
                    let ranges: [Range<usize>; 2] = [at..at + 1, (at + 3) % 8..(at + 3) % 8 + 1];
                    let _lock = locks.lock_pair(ranges).unwrap();
                    for count in [&counts[at], &counts[(at + 3) % 8]] {
                        let before = count.load(Ordering::Relaxed);
                        thread::yield_now();
                        count.store(before + 1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let sum: usize = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    assert_eq!(sum, 2 * THREADS * ROUNDS, "no count was made by two at a time");
    assert!(locks.is_free(0..usize::MAX));
}

#[test]
#[should_panic(expected = "handler")]
fn in_a_handler_nothing_is_waited_for() {
    let locks = RangeLocks::new();
    let _handler = HandlerScope::<StdPlatform>::enter();
    assert_eq!(locks.try_is_closed(1), Some(false));
    let _ = locks.lock(0..1);
}
