//! What may be a payload, and what becomes of large ones.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::thread;

use pervma::{AddressSpace, OwnedReadGuard, Payload, ReadGuard};

/// The same bytes all over.
#[derive(Clone, Debug, PartialEq)]
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Payload for Bytes<N> {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.clone()))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        (self == next).then(|| self.clone())
    }
}

type Space<T> = Arc<AddressSpace<T>>;

/// An operation, with a way to make payloads. Each has a stack frame of its own.
type Operation<T> = fn(&Space<T>, fn(u8) -> T);

/// All operations that move payloads, in an order in which they are possible.
const fn operations<T: Payload + Clone + 'static>() -> [Operation<T>; 20] {
    [
        |space, make| space.insert(0..30, make(1)).unwrap(),
        |space, make| space.insert_merging(30..60, make(1)).unwrap(),
        |space, make| drop(space.update(10..20, |_, _| make(2)).unwrap()),
        |space, make| drop(space.replace(12..14, make(3)).unwrap()),
        |space, make| drop(space.set(10..20, make(1)).unwrap()),
        |space, _| drop(space.relocate(0..10, 100, |_, payload| payload.clone()).unwrap()),
        |space, make| drop(space.edit().unwrap().update(30..40, |_, _| make(2)).unwrap()),
        |space, make| drop(space.edit().unwrap().set(30..40, make(1)).unwrap()),
        |space, make| drop(space.edit().unwrap().replace(30..40, make(4)).unwrap()),
        |space, make| assert!(space.insert(0..20, make(5)).is_err()),
        |space, _| {
            drop(space.exclude(12..14).unwrap().update(|_, payload| payload.clone()).unwrap());
        },
        |space, make| {
            let exclusion = space.exclude(12..14).unwrap();
            exclusion.remove_reserving().unwrap().1.commit(make(6)).unwrap();
        },
        |space, _| drop(space.fork(|_, payload| Some(payload.clone())).unwrap()),
        |space, _| assert!(space.iter().all(|vma| vma.is_ok())),
        |space, _| {
            let guard = space.read(13).unwrap();
            let owned = guard.try_to_owned(space).unwrap();
            drop(ReadGuard::map(guard, |payload| payload));
            drop(OwnedReadGuard::map(owned, |payload| payload));
        },
        |space, _| drop(space.retain(|range, _| range.start != 100).unwrap()),
        |space, _| drop(space.edit().unwrap().remove(11..12).unwrap()),
        |space, _| drop(space.remove(13..25).unwrap()),
        |space, _| drop(space.remove_whole(space.everything()).unwrap()),
        |space, make| space.insert(0..10, make(7)).unwrap(),
    ]
}

/// Runs them in a thread with the stack that threads get unless they ask for another.
fn run_all<T: Payload + Clone + Send + Sync + 'static>(make: fn(u8) -> T) {
    let all = move || {
        let space = Arc::new(AddressSpace::new(1));
        operations::<T>().iter().for_each(|operation| operation(&space, make));
        let vma = space.iter().next().map(|vma| vma.unwrap().0);
        assert_eq!((vma, space.len()), (Some(0..10), 1));
    };
    thread::Builder::new().stack_size(2 << 20).spawn(all).unwrap().join().unwrap();
}

/// A larger one does not compile (`core/src/compile_fail.rs`).
#[test]
fn the_largest_payload_overflows_no_stack() {
    run_all(|n| Bytes([n; 16 << 10]));
}

/// So large that one of them on the stack is half of it.
const LARGE: usize = 1 << 20;

fn large(n: u8) -> Box<[u8; LARGE]> {
    vec![n; LARGE].into_boxed_slice().try_into().unwrap()
}

#[derive(Clone)]
struct Boxed(Box<[u8; LARGE]>);

impl Payload for Boxed {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.clone()))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        (self.0 == next.0).then(|| self.clone())
    }
}

#[test]
fn what_is_large_never_is_on_the_stack() {
    run_all(|n| Boxed(large(n)));
    run_all(|n| Arc::<[u8; LARGE]>::from(large(n)));
    run_all(|n| (n, Some(Arc::<[u8; LARGE]>::from(large(n))), String::from("large")));
}
