//! Identities of VMAs: which ones an operation keeps, and which are new.
//!
//! There is one rule, which the table in `VmaId`'s documentation spells out: a VMA is the one that
//! was there before if that had the same start, unless it was replaced.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use pervma::{VmaId, VmaVersion};

use super::op::{Op, Outcome, Side};
use super::subject::{Named, Subject};

/// What is known of the VMAs of one space.
#[derive(Default)]
pub(crate) struct Identities {
    /// By their starts.
    now: BTreeMap<usize, Known>,
}

struct Known {
    end: usize,
    id: VmaId,
    /// How often it was write-locked, as far as versions show.
    changes: u64,
    /// The last version that was seen, and the changes before.
    seen: Option<(u64, VmaVersion)>,
}

impl Identities {
    /// Compares the VMAs of `side` with those before `op`, of which came `outcome`. What is named
    /// for the first time was not among those `given` to this or another space.
    pub(crate) fn follow<S: Subject>(
        &mut self,
        side: &mut Side<S>,
        op: &Op,
        outcome: &Outcome,
        given: &mut HashSet<VmaId>,
    ) {
        let Some(named) = side.subject.named() else { return };
        let mut before = std::mem::take(&mut self.now);
        let mut gone = Vec::new();
        let mut changed = 0..0;
        match (op, outcome) {
            (Op::Fork { go_on: true, .. }, Outcome::Forked(_)) => {
                gone.extend(std::mem::take(&mut before).into_values());
            }
            // A fork write-locks everything.
            (Op::Fork { .. }, Outcome::Forked(_)) => changed = 0..usize::MAX,
            (Op::Update(range, _) | Op::Keep(range) | Op::Change(range, _), Outcome::Done(_)) => {
                changed = range.clone();
            }
            (Op::Replace(range, _), Outcome::Done(_)) => gone.extend(before.remove(&range.start)),
            (Op::Set(range, _), Outcome::Done(_)) => {
                gone.extend(before.remove(&range.start));
                changed = range.clone(); // also of one that it is merged into again
            }
            _ => {}
        }
        for Named { range, id, version } in named {
            let touched = range.start < changed.end && changed.start < range.end;
            let known = match before.remove(&range.start) {
                Some(mut known) => {
                    assert_eq!(id, known.id, "{op:x?} has changed the identity of {range:x?}");
                    if touched || known.end != range.end {
                        known.changes += 1;
                        assert_eq!(side.subject.find(id), Some(range.clone()), "{op:x?}");
                    }
                    known
                }
                None => {
                    assert!(given.insert(id), "{op:x?} has given {id:x?} again");
                    Known { end: 0, id, changes: 0, seen: None }
                }
            };
            self.now.insert(range.start, known.seen_as(range, version));
        }
        gone.extend(before.into_values());
        for Known { id, .. } in gone {
            assert_eq!(side.subject.find(id), None, "after {op:x?}");
        }
    }

    /// One of the identities, if there is one.
    pub(crate) fn any(&self) -> Option<VmaId> {
        self.now.values().next().map(|known| known.id)
    }
}

impl Known {
    /// Notes the range and the version, which is the one before only if there was no change.
    fn seen_as(mut self, range: Range<usize>, version: Option<VmaVersion>) -> Self {
        self.end = range.end;
        if let Some(version) = version {
            if let Some((changes, before)) = self.seen {
                assert_eq!(changes == self.changes, before == version, "{range:x?}");
            }
            self.seen = Some((self.changes, version));
        }
        self
    }
}

#[cfg(test)]
pub(crate) use table::run;

#[cfg(test)]
mod table {
    use super::super::op::Op::*;
    use super::super::op::Paint::Letter;
    use super::super::picture::{Place, make};
    use super::super::subject::World;
    use super::*;

    /// A space before, what is done, and the VMAs that there are afterwards: `=` for one that was
    /// there before, `+` for another.
    type Case = (&'static str, &'static [Op], &'static str);

    const CASES: &[Case] = &[
        ("ab.AA", &[Insert(2..3, Letter('B'))], "=+="),
        // Split.
        ("abcdef", &[Remove(2..4)], "=+"),
        ("abcdef", &[Remove(0..2)], "+"),
        ("abcdef", &[Remove(4..6)], "="),
        ("abcdef", &[Update(2..4, Letter('A'))], "=++"),
        ("abcdef", &[Update(0..2, Letter('A'))], "=+"),
        ("abcdef", &[Update(4..6, Letter('A'))], "=+"),
        // Changed as a whole, and merged: the leftmost stays.
        ("AABB", &[Update(0..2, Letter('C'))], "=="),
        ("AABB", &[Update(0..2, Letter('B'))], "="),
        ("AABB", &[Update(2..4, Letter('A'))], "="),
        ("AABBAA", &[Update(2..4, Letter('A'))], "="),
        ("abcdef", &[Update(3..5, Letter('d'))], "="),
        // Changed in part, and unmapped in part.
        ("AABBCC", &[Change(0..6, 4)], "="),
        ("AABBBA", &[Change(1..6, 5)], "=="),
        // Replaced, as a whole and in part.
        ("AABB", &[Replace(0..2, Letter('A'))], "+="),
        ("AABB", &[Replace(2..4, Letter('A'))], "=+"),
        ("AABB", &[Replace(1..3, Letter('C'))], "=++"),
        ("AABB", &[Replace(0..4, Letter('C'))], "+"),
        // Set, which replaces, and then merges with what is on the left or the right.
        ("AABB", &[Set(0..2, Letter('A'))], "+="),
        ("AABB", &[Set(0..2, Letter('B'))], "+"),
        ("AABB", &[Set(2..4, Letter('A'))], "="),
        ("AABB", &[Set(1..3, Letter('A'))], "=+"),
        ("AABB", &[Set(1..3, Letter('B'))], "=+"),
        ("AABBAA", &[Set(2..4, Letter('A'))], "="),
        ("AA..AA", &[InsertMerging(2..4, Letter('A'))], "="),
        ("AA..BB", &[InsertMerging(2..4, Letter('B'))], "=+"),
        ("AA..BB", &[InsertMerging(2..4, Letter('C'))], "=+="),
        // Moved.
        ("ab....", &[Relocate(0..2, 3)], "+"),
        ("abcd..", &[Relocate(2..4, 4)], "=+"),
        ("AA...AA", &[Relocate(5..7, 2)], "="),
        ("AA...AA", &[Relocate(0..2, 3)], "+"),
        // Reserved where it was, and mapped again at the same address.
        ("AABB", &[RemoveReserving(0..2)], "="),
        ("AABB", &[RemoveReserving(0..2), Commit(0, Letter('A'))], "+="),
        ("AABB", &[Remove(0..2), Insert(0..2, Letter('A'))], "+="),
        ("AA##", &[Commit(0, Letter('A'))], "=+"),
        // Nothing has changed.
        ("AABB", &[Exclude(0..2), Release], "=="),
        ("0123", &[Exclude(0..4), Release], "="),
    ];

    pub(crate) fn run<W: World>() {
        for (before, ops, after) in CASES {
            for shared in [false, true] {
                case::<W>(before, ops, after, shared);
            }
        }
    }

    fn case<W: World>(before: &str, ops: &[Op], after: &str, shared: bool) {
        let world = W::new(1, shared);
        let mut side = Side::new(world.space(), 1);
        make(&mut side, before, Place { base: 0, granule: 1 });
        side.subject.end();
        let old: Vec<_> = side.subject.named().unwrap().iter().map(|vma| vma.id).collect();
        ops.iter().for_each(|op| side.must(op));
        side.subject.end();
        let new = side.subject.named().unwrap();
        let marks = new.iter().map(|vma| if old.contains(&vma.id) { '=' } else { '+' });
        assert_eq!(marks.collect::<String>(), after, "{before}, {ops:?}");
        for id in old {
            let stays = new.iter().find(|vma| vma.id == id).map(|vma| vma.range.clone());
            assert_eq!(side.subject.find(id), stays, "{before}, {ops:?}");
        }
        drop(side);
        world.finish();
    }
}
