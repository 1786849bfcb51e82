//! Nothing allocates and nothing locks inside the handler: an allocator that aborts there, and the
//! address space's own check. Children prove that both would be noticed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

use common::{PAGE, child_case, run_child};
use pervma::{AddressSpace, HandlerScope, StdPlatform};
use pervma_pager::{
    FileSource, FrozenRegion, MemorySource, Options, ReadFailed, SignalSafe, Source,
};

/// Aborts inside a marked handler.
struct NotInHandler;

fn check() {
    if HandlerScope::<StdPlatform>::active() {
        std::process::abort();
    }
}

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for NotInHandler {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: NotInHandler = NotInHandler;

#[test]
fn faults_do_not_allocate() {
    common::watch();
    // Some that come in huge pages, and some that do not.
    let bytes = vec![5; (4 << 20) + 50 * PAGE + 1];
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let huge = Options::new().granule(2 << 20);
    let huge = huge.map(FileSource::new(file.try_clone().unwrap()).unwrap()).unwrap();
    let regions = [
        FrozenRegion::map(MemorySource::new(bytes.clone())).unwrap(),
        FrozenRegion::map(FileSource::new(file).unwrap()).unwrap(),
        huge.freeze().unwrap(),
    ];
    for region in &regions {
        std::thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| assert!(region[..] == bytes));
            }
        });
    }
}

/// Breaks the contract in a way of its choice.
struct Forbidden(fn());

// SAFETY: deliberately broken; the process that uses it ends at once.
unsafe impl SignalSafe for Forbidden {}

impl Source for Forbidden {
    fn size(&self) -> u64 {
        1
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        (self.0)();
        Ok(())
    }
}

#[test]
fn what_must_not_happen_in_a_handler_aborts() {
    static OTHER: AddressSpace<()> = AddressSpace::new(4096);

    if let Some(case) = child_case() {
        let forbidden = match case.as_str() {
            "allocate" => || drop(std::hint::black_box(Box::new([0; 100]))),
            "edit" => || drop(OTHER.edit()),
            "nothing" => || {},
            _ => unreachable!(),
        };
        let region = FrozenRegion::map(Forbidden(forbidden)).unwrap();
        std::hint::black_box(region[0]);
        std::process::exit(42);
    }

    let name = "what_must_not_happen_in_a_handler_aborts";
    assert_eq!(run_child(name, "nothing").exit, Some(42));
    for case in ["allocate", "edit"] {
        assert_eq!(run_child(name, case).signal, Some(libc::SIGABRT), "{case}");
    }
}
