//! Faults of several threads while mappings change.
#![expect(clippy::disallowed_types, reason = "a test has no ledger")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pervma_linux::{Access, Backing, Config, Mm, NoBacking, Part, Refusal, Signal, abi::*};

use watchdog::watchdog;

#[test]
fn faults_find_what_is_mapped_throughout() {
    let _watchdog = watchdog(300);
    const STAYS: usize = 0x1000_0000;
    const COMES_AND_GOES: usize = STAYS + 8 * PAGE;
    const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

    let mm = Mm::new(NoBacking, Config::default());
    mm.mmap(STAYS, 8 * PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let faulting = scope.spawn(|| {
            let (mut faults, mut seen) = (0_u64, [false; 2]);
            while !over.load(Ordering::Relaxed) || seen != [true; 2] {
                for page in 0..8 {
                    let addr = STAYS + page * PAGE;
                    assert_eq!(mm.fault(addr, Access::Read), Ok(()), "page {page}");
                }
                match mm.fault(COMES_AND_GOES, Access::Read) {
                    Ok(()) => seen[0] = true,
                    Err(Signal::NotMapped) => seen[1] = true,
                    Err(other) => panic!("{other:?}"),
                }
                faults += 9;
            }
            faults
        });
        for round in 0..4000 {
            mm.mmap(COMES_AND_GOES, PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
            let (split, len) = (STAYS + (round % 8) * PAGE, PAGE);
            mm.mprotect(split, len, PROT_READ | PROT_EXEC).unwrap();
            mm.mprotect(split, len, PROT_READ).unwrap();
            if round % 64 == 0 {
                thread::yield_now();
            }
            mm.munmap(COMES_AND_GOES, PAGE).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        // This ends when faults have found the mapping and have found it gone.
        while !faulting.is_finished() {
            mm.mmap(COMES_AND_GOES, PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
            thread::yield_now();
            mm.munmap(COMES_AND_GOES, PAGE).unwrap();
            thread::yield_now();
        }
        assert!(faulting.join().unwrap() > 0);
    });
    assert_eq!(mm.maps().unwrap().lines().count(), 1, "{:?}", mm.maps());
}

/// Counts the faults that run while pages are moved, unmapped or protected.
#[derive(Default)]
struct Watch {
    /// The ranges that no fault may be in.
    closed: Mutex<Vec<Range<usize>>>,
    /// Whether the range that is moved from stays mapped (`MREMAP_DONTUNMAP`).
    stays: AtomicBool,
    faulting: Mutex<Vec<usize>>,
    faults: AtomicUsize,
    intruders: AtomicUsize,
}

impl Watch {
    /// Forbids faults in a range, and watches for some time whether one is in it or begins.
    fn close(&self, range: Range<usize>) {
        self.closed.lock().unwrap().push(range.clone());
        let inside = self.faulting.lock().unwrap().iter().any(|addr| range.contains(addr));
        self.intruders.fetch_add(usize::from(inside), Ordering::Relaxed);
        let begin = Instant::now();
        while self.intruders.load(Ordering::Relaxed) == 0
            && begin.elapsed() < Duration::from_millis(2)
        {
            thread::yield_now();
        }
    }

    fn open(&self) {
        self.closed.lock().unwrap().clear();
    }
}

impl Backing for Watch {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        let addr = part.range.start;
        self.faulting.lock().unwrap().push(addr);
        let closed = self.closed.lock().unwrap().iter().any(|range| range.contains(&addr));
        self.intruders.fetch_add(usize::from(closed), Ordering::Relaxed);
        self.faults.fetch_add(1, Ordering::Relaxed);
        thread::yield_now();
        self.faulting.lock().unwrap().retain(|other| *other != addr);
        Ok(())
    }

    fn unmap(&self, range: Range<usize>) {
        self.close(range);
        self.open();
    }

    fn protect(&self, part: Part<'_>) {
        self.close(part.range);
        self.open();
    }

    fn relocate(&self, from: Range<usize>, to: usize) {
        self.close(to..to + from.len());
        self.close(from);
        if self.stays.load(Ordering::Relaxed) {
            self.open();
        }
    }
}

#[test]
fn nothing_is_faulted_in_where_pages_are_moved_unmapped_or_protected() {
    let _watchdog = watchdog(300);
    const HERE: usize = 0x1000_0000;
    const THERE: usize = 0x2000_0000;
    let mm = Mm::new(Watch::default(), Config::default());
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    mm.mmap(HERE, 2 * PAGE, PROT_READ, flags, None, 0).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // A page of the same mapping is not moved, so that a part of a mapping is.
        for addr in [HERE, HERE + PAGE, THERE] {
            let (mm, over) = (&mm, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let _ = mm.fault(addr, Access::Read);
                }
            });
        }
        let faults = || mm.backing().faults.load(Ordering::Relaxed);
        for round in 0..20 {
            let before = faults();
            while faults() < before + 10 {
                thread::yield_now();
            }
            let fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
            mm.backing().stays.store(round % 2 == 1, Ordering::Relaxed);
            if round % 2 == 0 {
                mm.mremap(HERE, PAGE, PAGE, fixed, THERE).unwrap();
                mm.mremap(THERE, PAGE, PAGE, fixed, HERE).unwrap();
            } else {
                mm.mremap(HERE, PAGE, PAGE, fixed | MREMAP_DONTUNMAP, THERE).unwrap();
                mm.munmap(THERE, PAGE).unwrap();
            }
            mm.mprotect(HERE, PAGE, PROT_READ | PROT_EXEC).unwrap();
            mm.mprotect(HERE, PAGE, PROT_READ).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(mm.backing().intruders.load(Ordering::Relaxed), 0);
}
