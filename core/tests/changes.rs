//! Changes by rules of the caller, by what they keep, and with a deadline.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::watchdog;
use pervma::{AddressSpace, ChangeError, EditError, Payload, RemovedVmas, SplitMerge};

/// A handle, and a payload that says nothing of how it is split.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Handle(u32);

fn handles(vmas: &[(Range<usize>, u32)]) -> AddressSpace<Handle> {
    let space = AddressSpace::new(1);
    vmas.iter().for_each(|(range, n)| space.insert(range.clone(), Handle(*n)).unwrap());
    space
}

fn listed(space: &AddressSpace<Handle>) -> Vmas {
    space.view().unwrap().iter().map(|(range, handle)| (range, handle.0)).collect()
}

/// Rules that note how they were asked.
#[derive(Default)]
struct Noting {
    split: Vec<(u32, Range<usize>, usize)>,
    merged: Vec<(u32, Range<usize>, u32)>,
    next: u32,
}

impl SplitMerge<Handle> for Noting {
    fn split(&mut self, of: &Handle, range: Range<usize>, at: usize) -> Option<(Handle, Handle)> {
        self.split.push((of.0, range, at));
        self.next += 1;
        Some((*of, Handle(100 + self.next)))
    }

    fn merge(&mut self, of: &Handle, range: Range<usize>, next: &Handle) -> Option<Handle> {
        self.merged.push((of.0, range, next.0));
        (of == next).then_some(*of)
    }
}

type Vmas = Vec<(Range<usize>, u32)>;

/// Makes a change, in an edit or outside of one.
fn change(
    in_edit: bool,
    space: &AddressSpace<Handle>,
    range: Range<usize>,
    rules: &mut Noting,
    place: impl FnMut(Range<usize>, &Handle) -> Option<Handle>,
) -> Vmas {
    let changed = if in_edit {
        space.edit().unwrap().change(range, rules, place)
    } else {
        space.change(range, rules, place)
    };
    changed.unwrap().into_iter().map(|vma| (vma.range, vma.payload.0)).collect()
}

#[test]
fn rules_are_asked_with_addresses_and_a_part_stays_or_goes() {
    for in_edit in [false, true] {
        let space = handles(&[(0..10, 1), (10..20, 2), (30..50, 3)]);
        let mut rules = Noting::default();
        let mut parts = Vec::new();
        let before = change(in_edit, &space, 5..40, &mut rules, |range, handle| {
            parts.push((range.clone(), handle.0));
            (range.start != 10).then_some(Handle(if range.start == 5 { 1 } else { 102 }))
        });
        assert_eq!(before, [(5..10, 101), (10..20, 2), (30..40, 3)]);
        assert_eq!(parts, before);
        assert_eq!(rules.split, [(1, 0..10, 5), (3, 30..50, 40)]);
        // The first part is as what was left of its VMA, the last one as the rest behind it.
        assert_eq!(rules.merged, [(1, 0..5, 1), (102, 30..40, 102)]);
        assert_eq!(listed(&space), [(0..10, 1), (30..50, 102)]);
        assert_eq!(space.len(), 2);
    }
}

#[test]
fn a_vma_of_which_both_ends_stay_is_split_twice() {
    for in_edit in [false, true] {
        let space = handles(&[(10..40, 1)]);
        let mut rules = Noting::default();
        let before = change(in_edit, &space, 20..30, &mut rules, |_, _| None);
        assert_eq!(before, [(20..30, 101)]);
        assert_eq!(rules.split, [(1, 10..40, 20), (101, 20..40, 30)]);
        assert_eq!(listed(&space), [(10..20, 1), (30..40, 102)]);
    }
}

#[test]
fn what_the_rules_do_not_split_stays() {
    struct Never;
    impl<T> SplitMerge<T> for Never {}

    let space = handles(&[(0..10, 1), (10..20, 2)]);
    let refused = Err(ChangeError::PartlyCovered { vma: 10..20 });
    assert_eq!(space.change(0..15, Never, |_, _| None), refused);
    assert_eq!(space.edit().unwrap().change(0..15, Never, |_, _| None), refused);
    let nothing = Err(ChangeError::NotMapped { range: 20..30 });
    assert_eq!(space.change(20..30, Never, |_, _| None), nothing);
    let mut asked = false;
    assert!(
        space
            .change(0..20, Never, |_, of| {
                asked = true;
                Some(*of)
            })
            .is_ok()
            && asked
    );
    assert_eq!(listed(&space), [(0..10, 1), (10..20, 2)]);
}

/// A payload that a function could not make, if it is negative; counted when it is dropped.
#[derive(Debug)]
struct Made<'a>(i32, &'a AtomicUsize);

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.1.fetch_add(1, Relaxed);
    }
}

impl Payload for Made<'_> {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((Made(self.0, self.1), Made(self.0, self.1)))
    }

    fn may_be_mapped(&self) -> bool {
        assert!(self.0 != -2, "a panic");
        self.0 > 0
    }
}

#[test]
fn a_change_is_given_up_when_a_payload_could_not_be_made() {
    type Space<'a> = AddressSpace<Made<'a>>;
    type Changed<'a> = Result<RemovedVmas<Made<'a>>, ChangeError>;
    // The number that is made at 10; it is asked for in order of address.
    fn make<'a>(n: i32, asked: &mut Vec<usize>, part: &Range<usize>, of: &Made<'a>) -> Made<'a> {
        asked.push(part.start % 100);
        Made(if part.start % 100 == 10 { n } else { of.0 + 10 }, of.1)
    }
    type Form = for<'a> fn(&Space<'a>, i32, &mut Vec<usize>) -> Changed<'a>;
    let forms: [(&str, Form); 8] = [
        ("update", |space, n, asked| space.update(5..25, |part, of| make(n, asked, &part, of))),
        ("update in an edit", |space, n, asked| {
            space.edit()?.update(5..25, |part, of| make(n, asked, &part, of))
        }),
        ("update of an exclusion", |space, n, asked| {
            space.exclude(5..25)?.update(|part, of| make(n, asked, &part, of))
        }),
        ("change", |space, n, asked| {
            space.change(5..25, SameRules, |part, of| Some(make(n, asked, &part, of)))
        }),
        ("change in an edit", |space, n, asked| {
            space.edit()?.change(5..25, SameRules, |part, of| Some(make(n, asked, &part, of)))
        }),
        ("relocate", |space, n, asked| {
            space.relocate(5..25, 105, |part, of| make(n, asked, &part, of))
        }),
        ("relocate in an edit", |space, n, asked| {
            space.edit()?.relocate(5..25, 105, |part, of| make(n, asked, &part, of))
        }),
        ("relocate of an exclusion", |space, n, asked| {
            space.exclude(5..25)?.relocate(105, |part, of| make(n, asked, &part, of))
        }),
    ];
    for (name, form) in forms {
        let dropped = AtomicUsize::new(0);
        let space = AddressSpace::new(1);
        for (range, n) in [(0..10, 1), (10..20, 2), (20..30, 3)] {
            space.insert(range, Made(n, &dropped)).unwrap();
        }
        let listed = || {
            let view = space.view().unwrap();
            view.iter().map(|(range, made)| (range, made.0)).collect::<Vec<_>>()
        };
        let before = listed();

        let mut asked = Vec::new();
        let refused = form(&space, -1, &mut asked).unwrap_err();
        let ChangeError::GivenUp { part } = refused else { panic!("{name}: {refused:?}") };
        assert_eq!((part.start % 100, part.len()), (10, 10), "{name}");
        assert_eq!(asked, [5, 10], "{name}: not of what is behind it");
        assert_eq!(listed(), before, "{name}");
        // What the split and the function have made.
        assert_eq!(dropped.swap(0, Relaxed), 4, "{name}");

        let panics = AssertUnwindSafe(|| form(&space, -2, &mut Vec::new()).is_ok());
        assert!(catch_unwind(panics).is_err(), "{name}");
        assert_eq!((listed(), dropped.swap(0, Relaxed)), (before, 4), "{name}");

        assert_eq!(form(&space, 5, &mut Vec::new()).unwrap().len(), 3, "{name}: it is free again");
        assert!(listed().contains(&(if name.starts_with('r') { 110..120 } else { 10..20 }, 5)));
    }
}

/// As the payloads say.
struct SameRules;

impl<T: Payload> SplitMerge<T> for SameRules {
    fn split(&mut self, of: &T, range: Range<usize>, at: usize) -> Option<(T, T)> {
        of.split(at - range.start)
    }

    fn may_be_mapped(&mut self, made: &T, _: Range<usize>) -> bool {
        made.may_be_mapped()
    }
}

#[test]
fn a_panic_of_the_rules_changes_nothing() {
    struct Panics(bool);
    impl SplitMerge<Handle> for Panics {
        fn split(&mut self, of: &Handle, _: Range<usize>, _: usize) -> Option<(Handle, Handle)> {
            assert!(!self.0, "no split");
            Some((*of, *of))
        }
        fn merge(&mut self, _: &Handle, _: Range<usize>, _: &Handle) -> Option<Handle> {
            panic!("no merge")
        }
    }

    let space = handles(&[(0..10, 1), (10..20, 2)]);
    for in_split in [true, false] {
        for in_edit in [true, false] {
            let rules = Panics(in_split);
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                if in_edit {
                    space.edit().unwrap().change(0..5, rules, |_, of| Some(*of))
                } else {
                    space.change(0..5, rules, |_, of| Some(*of))
                }
            }));
            assert!(panicked.is_err());
            assert_eq!(listed(&space), [(0..10, 1), (10..20, 2)]);
            assert!(space.try_read(0).is_ok() && space.try_read(10).is_ok());
        }
    }
}

/// A payload whose drop needs the space: what C programs would do in a callback.
#[derive(Clone)]
struct Removed {
    n: u32,
    space: std::sync::Weak<AddressSpace<Self>>,
}

thread_local! {
    static DROPPED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Removed {
    fn drop(&mut self) {
        // Neither an edit nor an exclusion of this thread goes on: it would get an error.
        if let Some(space) = self.space.upgrade() {
            assert!(space.view().is_ok(), "{} is dropped with a lock held", self.n);
            let everything = space.exclude(space.everything());
            assert!(!matches!(everything, Err(ChangeError::OwnExclusion | ChangeError::OwnEdit)));
            DROPPED.with_borrow_mut(|dropped| dropped.push(self.n));
        }
    }
}

impl pervma::Payload for Removed {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.clone()))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        (self.n == next.n).then(|| self.clone())
    }
}

#[test]
fn what_goes_is_dropped_when_no_lock_is_held() {
    let space = Arc::new_cyclic(|_| AddressSpace::new(1));
    let payload = |n| Removed { n, space: Arc::downgrade(&space) };
    let dropped = || DROPPED.with_borrow_mut(std::mem::take);
    space.insert(0..30, payload(1)).unwrap();
    drop(space.set(10..20, payload(2)).unwrap());
    // What was there is split twice, into four of which one stays on each side.
    assert_eq!(dropped(), [1, 1, 1]);
    drop(space.set(10..20, payload(1)).unwrap()); // merged on both sides
    let mut gone = dropped();
    gone.sort_unstable();
    assert_eq!(gone, [1, 1, 1, 1, 2]);
    space.insert_merging(30..40, payload(1)).unwrap();
    assert_eq!(dropped(), [1, 1]);
    drop(space.update(0..5, |_, _| payload(3)).unwrap());
    assert_eq!(dropped(), [1, 1]);
    drop(space.retain(|_, payload| payload.n != 3).unwrap());
    assert_eq!(dropped(), [3]);
    drop(space.remove_whole(0..40).unwrap());
    assert_eq!(dropped(), [1]);
    assert!(space.is_empty());
}

#[test]
fn what_is_retained_may_be_read_meanwhile() {
    let dog = watchdog();
    let space = handles(&[(0..10, 1), (10..20, 2), (20..30, 3)]);
    let kept = space.try_read(0).unwrap();
    thread::scope(|scope| {
        let going = space.try_read(25).unwrap();
        let retained = scope.spawn(|| space.retain(|_, handle| handle.0 == 1).unwrap().into_vec());
        dog.until(|| space.try_read(25).is_err());
        assert!(space.try_read(5).is_ok(), "readers are admitted to what stays");
        assert!(space.try_read(15).is_err(), "and to nothing else");
        thread::scope(|scope| {
            scope.spawn(|| space.insert(50..60, Handle(9)).unwrap()); // edits go on
        });
        assert!(!retained.is_finished());
        drop(going);
        let retained = retained.join().unwrap();
        assert!(
            retained
                .iter()
                .map(|vma| (vma.range.clone(), vma.payload.0))
                .eq([(10..20, 2), (20..30, 3)])
        );
    });
    drop(kept);
    assert_eq!(listed(&space), [(0..10, 1), (50..60, 9)]);
    // Nothing goes, nothing is there.
    assert!(space.retain(|_, _| true).unwrap().is_empty());
    assert!(AddressSpace::<Handle>::new(1).retain(|_, _| false).unwrap().is_empty());
}

#[test]
fn retaining_waits_for_exclusions_of_what_goes_only() {
    let dog = watchdog();
    let space = handles(&[(0..10, 1), (10..20, 2)]);
    let (calls, (made, exclusion)) = (AtomicUsize::new(0), mpsc::channel());
    let (over, end) = mpsc::channel();
    thread::scope(|scope| {
        let space = &space;
        scope.spawn(move || {
            let exclusion = space.exclude(0..10).unwrap();
            made.send(()).unwrap();
            end.recv().unwrap();
            exclusion.change(&mut Noting::default(), |_, _| Some(Handle(5))).unwrap();
        });
        exclusion.recv().unwrap();
        assert_eq!(space.retain(|_, handle| handle.0 == 1).unwrap()[0].range, 10..20);
        let in_edit = space.edit().unwrap().retain(|_, handle| handle.0 != 1);
        assert_eq!(in_edit, Err(ChangeError::Excluded { vma: 0..10 }));
        let waits = scope.spawn(|| {
            space.retain(|_, handle| {
                calls.fetch_add(1, Relaxed);
                handle.0 != 1
            })
        });
        dog.until(|| calls.load(Relaxed) != 0);
        over.send(()).unwrap();
        assert!(waits.join().unwrap().unwrap().is_empty(), "it was asked about the new payload");
    });
    assert_eq!(listed(&space), [(0..10, 5)]);
}

/// Also while a registered reader, which no one has looked for then, reads what was to go.
#[test]
fn a_panic_while_retaining_changes_nothing() {
    let space = handles(&[(0..10, 1), (10..20, 2)]);
    let (reads, reading) = mpsc::channel();
    let (over, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let space = &space;
        scope.spawn(move || {
            let reader = space.register().unwrap();
            let guard = reader.try_read(0).unwrap();
            reads.send(()).unwrap();
            assert!(end.recv().is_err());
            assert_eq!(guard.0, 1);
        });
        reading.recv().unwrap();
        for in_edit in [true, false] {
            let keep = |_: Range<usize>, handle: &Handle| {
                assert_eq!(handle.0, 1, "no");
                false
            };
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                if in_edit { space.edit().unwrap().retain(keep) } else { space.retain(keep) }
            }));
            assert!(panicked.is_err());
            assert_eq!(listed(space), [(0..10, 1), (10..20, 2)]);
            assert!(space.try_read(0).is_ok() && space.try_read(10).is_ok());
        }
        drop(over);
    });
    assert_eq!(space.retain(|_, _| false).unwrap().len(), 2);
}

#[test]
fn a_neighbour_that_is_read_is_not_merged_and_not_waited_for() {
    let _dog = watchdog();
    let space = AddressSpace::new(1);
    space.insert(0..10, 'a').unwrap();
    space.insert(20..30, 'a').unwrap();
    thread::scope(|scope| {
        let guard = space.try_read(25).unwrap();
        scope.spawn(|| {
            space.insert_merging(10..20, 'a').unwrap();
            space.set(40..50, 'b').unwrap();
        });
        while space.try_read(45).is_err() {
            thread::yield_now();
        }
        drop(guard);
    });
    let vmas: Vec<_> = space.iter().map(Result::unwrap).collect();
    assert_eq!(vmas, [(0..20, 'a'), (20..30, 'a'), (40..50, 'b')]);
}

#[test]
fn an_edit_with_a_deadline_begins_or_says_that_it_came() {
    let _dog = watchdog();
    let space = AddressSpace::new(1);
    let soon = |millis| Instant::now() + Duration::from_millis(millis);
    space.edit_until(soon(0)).unwrap().unwrap().insert(0..10, 1).unwrap();
    let (held, edit) = mpsc::channel();
    let (over, end) = mpsc::channel();
    thread::scope(|scope| {
        let space = &space;
        scope.spawn(move || {
            let edit = space.edit().unwrap();
            held.send(()).unwrap();
            end.recv().unwrap();
            drop(edit);
        });
        edit.recv().unwrap();
        let (begun, deadline) = (Instant::now(), soon(20));
        assert!(space.edit_until(deadline).unwrap().is_none());
        assert!(Instant::now() >= deadline && begun < deadline);
        assert!(space.edit_until(begun).unwrap().is_none(), "it has passed");
        let waits = scope.spawn(|| space.edit_until(soon(300_000)).unwrap().is_some());
        over.send(()).unwrap();
        assert!(waits.join().unwrap());
    });
    let edit = space.edit().unwrap();
    assert_eq!(space.edit_until(soon(300_000)).err(), Some(EditError::OwnEdit));
    drop(edit);
    let _guard = space.try_read(0).unwrap();
    assert_eq!(space.edit_until(soon(300_000)).err(), Some(EditError::GuardHeld));
}
