//! What a fault takes of an alternate signal stack.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ptr;

use common::{PAGE, byte, file_with};
use pervma_pager::{FileSource, MemorySource, Options, Region};

const PAINT: u8 = 0xA5;

/// Runs `faulting` with an alternate stack of its own, and says how many bytes of that were used.
fn stack_used(faulting: impl FnOnce()) -> usize {
    let mut stack = vec![PAINT; 64 << 10];
    let ours =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    let mut before = ours;
    // SAFETY: the stack lives until the one before is restored.
    assert_eq!(unsafe { libc::sigaltstack(&raw const ours, &raw mut before) }, 0);
    faulting();
    // SAFETY: the stack that the thread had.
    assert_eq!(unsafe { libc::sigaltstack(&raw const before, ptr::null_mut()) }, 0);
    let start = stack.as_ptr();
    // SAFETY: within the stack, which only the kernel and the handler have written.
    let painted = |at: &usize| unsafe { start.wrapping_add(*at).read_volatile() } == PAINT;
    stack.len() - (0..stack.len()).take_while(painted).count()
}

/// What the standard library gives its threads.
fn given() -> usize {
    // SAFETY: no condition.
    let least = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
    libc::SIGSTKSZ.max(least as usize)
}

fn kinds() -> [(&'static str, Region); 5] {
    let bytes = vec![7; 64 * PAGE + 9];
    let memory = || MemorySource::new(&bytes[..]);
    let file = || FileSource::new(file_with(&bytes)).unwrap();
    let options = || Options::new().writable().granule(16 * PAGE);
    [
        ("memory", Options::new().map(memory())),
        ("file", Options::new().map(file())),
        ("memory, in granules", options().map(memory())),
        ("file, in granules", options().map(file())),
        ("file, in granules, bounded", options().resident(64 * PAGE).map(file())),
    ]
    .map(|(kind, region)| (kind, region.unwrap()))
}

#[test]
fn a_fault_fits_on_the_alternate_stack_of_a_thread() {
    common::watch();
    for (kind, region) in kinds() {
        let used = stack_used(|| {
            for page in 0..65 {
                assert_eq!(byte(&region, page * PAGE), 7);
            }
        });
        println!("{kind}: {used} bytes");
        assert!(used <= given(), "{kind}: {used} bytes");
    }
}

#[test]
fn a_fault_that_moves_a_huge_page_fits_there_as_well() {
    common::watch();
    const HUGE: usize = 2 << 20;
    let file = FileSource::new(file_with(&vec![7; 4 * HUGE + 9])).unwrap();
    let region = Options::new().granule(HUGE).map(file).unwrap().freeze().unwrap();
    let used = stack_used(|| assert!(region.iter().step_by(PAGE).all(|&byte| byte == 7)));
    println!("{used} bytes");
    assert!(used <= given(), "{used} bytes");
}

/// Threads that write, write back, unmap and map parts of a region meet what others change, and
/// take the paths of a fault that are seldom taken.
#[test]
fn a_fault_that_meets_changes_fits_there_as_well() {
    common::watch();
    const PAGES: usize = 16;
    let file = || FileSource::new(file_with(&[7; PAGES * PAGE])).unwrap();
    let region = Options::new().writable().resident(8 * PAGE).map(file()).unwrap();
    let region = &region;
    let part = |page: usize| page * PAGE..(page + 1) * PAGE;
    let most = std::thread::scope(|scope| {
        let touching = (0..2).map(|thread| {
            scope.spawn(move || {
                stack_used(|| {
                    for turn in 0..20_000 {
                        let page = (turn * 5 + thread) % (PAGES / 2);
                        assert_eq!(byte(region, page * PAGE), 7);
                        region.write(page * PAGE, &[7]);
                        if turn % 16 == 0 {
                            region.write_back(0..region.len()).unwrap();
                        }
                    }
                })
            })
        });
        let changing = scope.spawn(move || {
            stack_used(|| {
                for turn in 0..20_000 {
                    let page = PAGES / 2 + turn * 5 % (PAGES / 2);
                    region.unmap(part(page)).unwrap();
                    region.map(part(page)).unwrap();
                    assert_eq!(byte(region, page * PAGE), 7);
                }
            })
        });
        let threads: Vec<_> = touching.chain([changing]).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    });
    println!("beside changes: {most} bytes");
    assert!(most <= given(), "{most} bytes");
}
