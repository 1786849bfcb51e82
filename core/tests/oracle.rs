//! Random edits on the real thing and on the oracle, results and errors compared.
//!
//! Two spaces on one slab are edited in turn, so that slots and nodes go from one to the other;
//! each has an oracle of its own. `PROPTEST_CASES` makes the run longer.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ops::Range;
use std::sync::Arc;

use pervma::{
    AddressSpace, InsertError, InsertErrorKind, RangeError, ReadError, RemoveError, Slab,
};
use pervma_oracle::{Oracle, Refused};
use proptest::prelude::*;

/// Addresses are taken from here, so that ranges touch and overlap often.
const SMALL: usize = 64;
const GRANULARITY: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    Insert(Range<usize>),
    Remove(Range<usize>),
    /// Looked up with and without the lock.
    Look(usize),
}

fn range() -> impl Strategy<Value = Range<usize>> {
    let aligned = (0..SMALL, 0..8_usize)
        .prop_map(|(start, len)| GRANULARITY * start..GRANULARITY * (start + len));
    let any = (0..2 * SMALL, 0..2 * SMALL).prop_map(|(start, end)| start..end);
    let wide = (0..SMALL, 0..SMALL)
        .prop_map(|(start, len)| GRANULARITY * start..GRANULARITY * (start + len));
    let ends = prop_oneof![
        Just(0..GRANULARITY),
        Just(usize::MAX - 3..usize::MAX - 1),
        Just(0..usize::MAX - 1),
        Just(usize::MAX - 1..usize::MAX),
    ];
    prop_oneof![30 => aligned, 2 => any, 2 => wide, 1 => ends]
}

fn op() -> impl Strategy<Value = (usize, Op)> {
    let op = prop_oneof![
        5 => range().prop_map(Op::Insert),
        4 => range().prop_map(Op::Remove),
        2 => (0..2 * SMALL + 8).prop_map(Op::Look),
    ];
    (0..2_usize, op)
}

/// A range error in the oracle's words.
fn refused(error: RangeError) -> Refused {
    match error {
        RangeError::Empty { .. } => Refused::Empty,
        RangeError::Overflow { .. } => Refused::Overflow,
        RangeError::Unaligned { addr, .. } => Refused::Unaligned(addr),
        other => panic!("unknown: {other}"),
    }
}

fn insert(
    space: &AddressSpace<usize>,
    range: Range<usize>,
    payload: usize,
) -> Result<(), (Refused, usize)> {
    space.edit().unwrap().insert(range, payload).map_err(|InsertError { kind, payload, .. }| {
        let refused = match kind {
            InsertErrorKind::Range(error) => refused(error),
            InsertErrorKind::Overlap { existing } => Refused::Overlap(existing),
            other => panic!("unexpected: {other:?}"),
        };
        (refused, payload)
    })
}

fn remove(
    space: &AddressSpace<usize>,
    range: Range<usize>,
) -> Result<Vec<(Range<usize>, usize)>, Refused> {
    let removed = space.edit().unwrap().remove(range);
    match removed {
        Ok(removed) => Ok(removed.into_iter().map(|vma| (vma.range, vma.payload)).collect()),
        Err(RemoveError::Range(error)) => Err(refused(error)),
        Err(RemoveError::NotMapped { .. }) => Err(Refused::NotMapped),
        Err(RemoveError::PartlyCovered { vma }) => Err(Refused::PartlyCovered(vma)),
        Err(other) => panic!("unexpected: {other:?}"),
    }
}

fn look(space: &AddressSpace<usize>, addr: usize) -> Option<(Range<usize>, usize)> {
    let quick = space.try_read(addr).map(|vma| (vma.range(), *vma));
    let waiting = space.read(addr).map(|vma| (vma.range(), *vma));
    assert_eq!(quick, waiting);
    let edit = space.edit().unwrap();
    assert_eq!(edit.get(addr).map(|(range, &payload)| (range, payload)), quick.clone().ok());
    if let Err(error) = quick {
        assert_eq!(error, ReadError::NotMapped { addr });
    }
    quick.ok()
}

/// Runs `ops` on both and compares; returns how many there were.
fn compare(ops: Vec<(usize, Op)>) {
    let slab = Arc::new(Slab::new());
    let spaces = [0, 1].map(|_| AddressSpace::on_slab(GRANULARITY, Arc::clone(&slab)));
    let mut oracles = [0, 1].map(|_| Oracle::new(GRANULARITY));
    for (step, (which, op)) in ops.into_iter().enumerate() {
        let (space, oracle) = (&spaces[which], &mut oracles[which]);
        match op {
            Op::Insert(range) => {
                assert_eq!(insert(space, range.clone(), step), oracle.insert(range, step));
            }
            Op::Remove(range) => assert_eq!(remove(space, range.clone()), oracle.remove(range)),
            Op::Look(addr) => {
                let expected = oracle.get(addr).map(|(range, &payload)| (range, payload));
                assert_eq!(look(space, addr), expected);
            }
        }
    }
    for (space, oracle) in spaces.iter().zip(&oracles) {
        let edit = space.edit().unwrap();
        assert!(edit.iter().eq(oracle.iter()), "{:?}", edit.iter().collect::<Vec<_>>());
    }
    let in_use = oracles.iter().map(|oracle| oracle.iter().count()).sum::<usize>();
    assert_eq!(slab.vmas().in_use, in_use);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edits_agree_with_the_oracle(ops in prop::collection::vec(op(), 1..400)) {
        compare(ops);
    }
}
