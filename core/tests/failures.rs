//! Whatever fails, the map stays as it was: every allocation and every call of user code in an
//! operation is made to fail, one after the other.
//!
//! The allocator of this program refuses the n-th allocation of the thread, slab memory included,
//! and the payload panics at its n-th method call. An operation runs with n = 0, 1, … on a fresh
//! space each time until nothing is left to fail.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pervma::{AddressSpace, ChangeError, GapSearch, Payload, Slab, SplitMerge};

thread_local! {
    /// Allocations until one is refused; none is when this is negative.
    static ALLOCATIONS_LEFT: Cell<isize> = const { Cell::new(-1) };
    /// Calls of user code until one panics; none does when this is negative.
    static CALLS_LEFT: Cell<isize> = const { Cell::new(-1) };
    /// Payloads alive.
    static ALIVE: Cell<isize> = const { Cell::new(0) };
}

/// Counts down; whether this one is to fail.
fn count_down(left: &'static std::thread::LocalKey<Cell<isize>>) -> bool {
    left.with(|left| {
        let turn = left.get() == 0;
        left.set(if left.get() > 0 { left.get() - 1 } else { -1 });
        turn
    })
}

struct Stingy;

// SAFETY: the system's allocator, or null.
unsafe impl GlobalAlloc for Stingy {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if count_down(&ALLOCATIONS_LEFT) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Stingy = Stingy;

/// Bytes of something, from an offset on.
#[derive(Debug, PartialEq)]
struct Bytes {
    of: u32,
    offset: usize,
}

impl Bytes {
    fn new(of: u32, offset: usize) -> Self {
        ALIVE.with(|alive| alive.set(alive.get() + 1));
        Self { of, offset }
    }

    /// A copy made by user code, which panics when it is its turn.
    fn made(&self, offset: usize) -> Self {
        self.made_of(self.of, offset)
    }

    fn made_of(&self, of: u32, offset: usize) -> Self {
        assert!(!count_down(&CALLS_LEFT), "user code panics");
        Self::new(of, self.offset + offset)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        ALIVE.with(|alive| alive.set(alive.get() - 1));
    }
}

impl Payload for Bytes {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        Some((self.made(0), self.made(offset)))
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        (self.of == next.of && self.offset + len == next.offset).then(|| self.made(0))
    }
}

/// The payloads' own rules.
struct ByRules;

impl SplitMerge<Bytes> for ByRules {
    fn split(&mut self, of: &Bytes, range: Range<usize>, at: usize) -> Option<(Bytes, Bytes)> {
        Payload::split(of, at - range.start)
    }

    fn merge(&mut self, of: &Bytes, range: Range<usize>, next: &Bytes) -> Option<Bytes> {
        Payload::merge(of, range.len(), next)
    }
}

fn is_wanted(_: Range<usize>, bytes: &Bytes) -> bool {
    assert!(!count_down(&CALLS_LEFT), "user code panics");
    bytes.of != 1
}

type Space = AddressSpace<Bytes>;
/// The VMAs, and the gaps that searches for several sizes find.
type Listed = (Vec<(Range<usize>, u32, usize)>, Vec<Option<Range<usize>>>);

fn listed(space: &Space) -> Listed {
    let edit = space.edit().unwrap();
    let vmas = edit.iter().map(|(range, bytes)| (range, bytes.of, bytes.offset)).collect();
    let gap = |size| {
        let search = GapSearch::new(size).within(100..2_000);
        [search.clone(), search.top_down()].map(|search| edit.find_gap(&search).ok())
    };
    (vmas, [1, 20, 21, 50, 100, 1_560, 1_561].into_iter().flat_map(gap).collect())
}

/// One operation: whether it was done, or what it was refused for.
type Operation = (&'static str, fn(&Space) -> Result<(), ChangeError>);

const OPERATIONS: &[Operation] = &[
    ("insert", |space| {
        space.edit().unwrap().insert(700..710, Bytes::new(7, 0)).map_err(|error| error.kind)
    }),
    ("insert all", |space| {
        let one = [(700..710, Bytes::new(7, 0))];
        space.edit().unwrap().insert_all(one).map_err(|error| error.kind)
    }),
    ("insert merging", |space| {
        let inserted = space.edit().unwrap().insert_merging(400..420, Bytes::new(1, 300));
        inserted.map_err(|error| error.kind)
    }),
    ("reserve", |space| space.edit().unwrap().reserve(700..710).map(drop)),
    ("remove", |space| space.edit().unwrap().remove(110..350).map(drop)),
    ("remove inside", |space| space.edit().unwrap().remove(120..130).map(drop)),
    ("remove whole", |space| space.edit().unwrap().remove_whole(100..300).map(drop)),
    ("retain", |space| space.edit().unwrap().retain(is_wanted).map(drop)),
    ("update", |space| {
        let mut edit = space.edit().unwrap();
        edit.update(110..130, |_, bytes| bytes.made_of(9, 0)).map(drop)
    }),
    ("update that merges", |space| {
        let mut edit = space.edit().unwrap();
        edit.update(200..300, |_, bytes| bytes.made_of(1, 100)).map(drop)
    }),
    ("replace", |space| {
        let replaced = space.edit().unwrap().replace(120..250, Bytes::new(7, 0));
        replaced.map(drop).map_err(|error| error.kind)
    }),
    ("set", |space| {
        let set = space.edit().unwrap().set(190..310, Bytes::new(1, 90));
        set.map(drop).map_err(|error| error.kind)
    }),
    ("change", |space| {
        let mut edit = space.edit().unwrap();
        let place =
            |range: Range<usize>, bytes: &Bytes| (range.start != 200).then(|| bytes.made_of(8, 0));
        edit.change(110..350, ByRules, place).map(drop)
    }),
    ("relocate", |space| {
        let mut edit = space.edit().unwrap();
        edit.relocate(150..450, 1000, |_, bytes| bytes.made(0)).map(drop)
    }),
    ("fork", |space| space.edit().unwrap().fork(|_, bytes| Some(bytes.made(0))).map(drop)),
    ("remove outside", |space| space.remove(110..350).map(drop)),
    ("remove whole outside", |space| space.remove_whole(100..300).map(drop)),
    ("retain outside", |space| space.retain(is_wanted).map(drop)),
    ("set outside", |space| {
        let set = space.set(190..310, Bytes::new(1, 90));
        set.map(drop).map_err(|error| error.kind)
    }),
    ("change outside", |space| {
        let place =
            |range: Range<usize>, bytes: &Bytes| (range.start != 200).then(|| bytes.made_of(8, 0));
        space.change(110..350, ByRules, place).map(drop)
    }),
    ("update outside", |space| space.update(110..130, |_, bytes| bytes.made_of(9, 0)).map(drop)),
    ("update outside that merges", |space| {
        space.update(200..300, |_, bytes| bytes.made_of(1, 100)).map(drop)
    }),
    ("replace outside", |space| {
        space.replace(120..250, Bytes::new(7, 0)).map(drop).map_err(|error| error.kind)
    }),
    ("remove and reserve", |space| {
        space.exclude(120..350)?.remove_reserving().map(|(_, mut reservation)| {
            reservation.commit(Bytes::new(7, 0)).unwrap();
        })
    }),
    ("relocate outside", |space| {
        space.relocate(150..450, 1000, |_, bytes| bytes.made(0)).map(drop)
    }),
];

/// VMAs at 100, 200 and 300 of which the first and the last would be one with the middle changed;
/// one more behind a hole; and before them, far above, `crowd` others that fill the slab.
fn space(slab: Option<&Arc<Slab<Bytes>>>, crowd: usize) -> Space {
    let space = slab.map_or_else(|| Space::new(1), |slab| Space::new_in(1, Arc::clone(slab)));
    let mut edit = space.edit().unwrap();
    for n in 0..crowd {
        edit.insert(10_000 + 20 * n..10_010 + 20 * n, Bytes::new(3, 0)).unwrap();
    }
    edit.insert(100..200, Bytes::new(1, 0)).unwrap();
    edit.insert(200..300, Bytes::new(2, 0)).unwrap();
    edit.insert(300..400, Bytes::new(1, 200)).unwrap();
    edit.insert(420..440, Bytes::new(4, 0)).unwrap();
    drop(edit);
    space
}

/// Runs `operation` on fresh spaces, the n-th allocation or call failing, until nothing fails; how
/// often something did.
fn fail_everywhere(
    operation: Operation,
    left: &'static std::thread::LocalKey<Cell<isize>>,
    fresh: &dyn Fn() -> Space,
) -> usize {
    let (name, run) = operation;
    let done = {
        let space = fresh();
        run(&space).unwrap();
        listed(&space)
    };
    for n in 0.. {
        let space = fresh();
        let (before, slots) = (listed(&space), space.slab().vmas().in_use);
        let nodes = space.slab().nodes().in_use;
        left.set(n);
        let result = catch_unwind(AssertUnwindSafe(|| run(&space)));
        let failed = left.get() < 0;
        left.set(-1);
        if !failed {
            assert_eq!((result.unwrap(), listed(&space)), (Ok(()), done));
            return n.unsigned_abs();
        }
        match result {
            // What failed was not needed.
            Ok(Ok(())) => assert_eq!(listed(&space), done, "{name}, failure {n}"),
            Ok(Err(error)) => {
                let out_of_memory = matches!(error, ChangeError::OutOfMemory { .. });
                assert!(out_of_memory, "{name}, failure {n}: {error}");
                assert_eq!(listed(&space), before, "{name}, failure {n}");
            }
            Err(_) => assert_eq!(listed(&space), before, "{name}, panic {n}"),
        }
        if listed(&space) == before {
            assert_eq!(space.slab().vmas().in_use, slots, "{name}, failure {n}: a slot is lost");
            let extra = space.slab().nodes().in_use - nodes;
            assert!(extra <= 8, "{name}, failure {n}: {extra} nodes are lost");
            // Readers are admitted, and the operation works when nothing fails.
            for (range, ..) in &before.0 {
                assert_eq!(space.try_read(range.start).unwrap().range(), *range);
            }
            run(&space).unwrap();
        }
        assert_eq!(listed(&space), done, "{name} after failure {n}");
    }
    unreachable!("every operation ends");
}

fn quiet(test: impl FnOnce()) {
    std::panic::set_hook(Box::new(|info| {
        let expected = info.payload().downcast_ref::<&str>() == Some(&"user code panics");
        if !expected {
            eprintln!("{info}");
        }
    }));
    test();
    assert_eq!(ALIVE.get(), 0, "every payload was dropped, once");
}

#[test]
fn a_panic_of_user_code_changes_nothing() {
    quiet(|| {
        for &operation in OPERATIONS {
            let panics = fail_everywhere(operation, &CALLS_LEFT, &|| space(None, 0));
            let none = ["insert", "insert all", "reserve", "remove whole", "remove whole outside"];
            let calls = !none.contains(&operation.0);
            assert_eq!(panics > 0, calls, "{}: {panics} panics", operation.0);
        }
    });
}

/// B8, B27.
#[test]
fn a_refused_allocation_changes_nothing() {
    quiet(|| {
        for &operation in OPERATIONS {
            fail_everywhere(operation, &ALLOCATIONS_LEFT, &|| space(None, 0));
        }
    });
}

#[test]
fn removing_one_whole_vma_asks_for_no_memory() {
    const ONE: &[Operation] = &[
        ("it", |space| space.edit().unwrap().remove(200..300).map(drop)),
        ("what it lies in", |space| space.edit().unwrap().remove(410..450).map(drop)),
        ("it, whatever its payload is", |space| {
            space.edit().unwrap().remove_whole(200..300).map(drop)
        }),
        ("it, outside", |space| space.remove(200..300).map(drop)),
        ("what is not wanted", |space| space.retain(|_, bytes| bytes.of != 2).map(drop)),
        ("it, excluded", |space| space.exclude(200..300)?.remove().map(drop)),
    ];
    let several: Operation = ("several", |space| space.edit().unwrap().remove(200..400).map(drop));
    quiet(|| {
        let refused = |operation| fail_everywhere(operation, &ALLOCATIONS_LEFT, &|| space(None, 0));
        assert_ne!(refused(several), 0, "an allocation would be noticed");
        for &operation in ONE {
            assert_eq!(refused(operation), 0, "{}", operation.0);
        }
    });
}

#[test]
fn a_full_slab_changes_nothing() {
    quiet(|| {
        let mut failures = 0;
        // Around the ends of the first chunk of slots, and of the first chunk of nodes.
        let nodes =
            (0..2_000).find(|&crowd| space(None, crowd).slab().nodes().capacity > 64).unwrap();
        for crowd in (54..64).chain(nodes - 24..nodes + 2) {
            for &operation in OPERATIONS {
                failures += fail_everywhere(operation, &ALLOCATIONS_LEFT, &|| space(None, crowd));
            }
        }
        assert!(failures > 0);
    });
}

#[test]
fn a_shared_slab_serves_the_others_after_a_failure() {
    quiet(|| {
        let slab = Arc::new(Slab::new());
        let neighbour = space(Some(&slab), 0);
        let before = listed(&neighbour);
        for &operation in OPERATIONS {
            fail_everywhere(operation, &ALLOCATIONS_LEFT, &|| space(Some(&slab), 0));
            fail_everywhere(operation, &CALLS_LEFT, &|| space(Some(&slab), 0));
        }
        assert_eq!(listed(&neighbour), before);
        assert_eq!(slab.vmas().in_use, before.0.len());
    });
}
