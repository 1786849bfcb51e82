//! Faults go on while mappings change.
#![expect(clippy::disallowed_types, reason = "a test has no ledger")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pervma_linux::{Access, Config, Mm, NoBacking, Signal, abi::*};

#[test]
fn faults_find_what_is_mapped_throughout() {
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
            let (cut, len) = (STAYS + (round % 8) * PAGE, PAGE);
            mm.mprotect(cut, len, PROT_READ | PROT_EXEC).unwrap();
            mm.mprotect(cut, len, PROT_READ).unwrap();
            if round % 64 == 0 {
                thread::yield_now();
            }
            mm.munmap(COMES_AND_GOES, PAGE).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        // Both kinds have been seen when this ends.
        while !faulting.is_finished() {
            mm.mmap(COMES_AND_GOES, PAGE, PROT_READ, ANONYMOUS, None, 0).unwrap();
            thread::yield_now();
            mm.munmap(COMES_AND_GOES, PAGE).unwrap();
            thread::yield_now();
        }
        assert!(faulting.join().unwrap() > 0);
    });
    assert_eq!(mm.maps().lines().count(), 1, "{}", mm.maps());
}
