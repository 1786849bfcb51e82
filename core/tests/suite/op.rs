//! The operations as data, and their results.

use std::ops::Range;

use pervma_oracle::{NoGap, Refused, Search};

use super::part::Part;
use super::subject::{Map, Subject};

/// The payload of a VMA that is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Paint {
    /// Begins with this letter.
    Letter(char),
    /// Part of a file that would begin with this letter at address 0: what touches goes on.
    File(char),
}

/// An operation on one space.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Insert(Range<usize>, Paint),
    InsertMerging(Range<usize>, Paint),
    Remove(Range<usize>),
    RemoveWhole(Range<usize>),
    /// Removes the VMAs whose number, counted in granules from address 0, this number divides.
    Retain(usize),
    /// If there is no exclusion yet, since it makes one.
    RemoveReserving(Range<usize>),
    /// Updates the parts in the range with pieces of one payload: each part gets the piece at its
    /// offset in the range.
    Update(Range<usize>, Paint),
    /// An update that keeps each part's payload.
    Keep(Range<usize>),
    /// A change that unmaps the parts whose number, counted as in `Retain`, this number divides,
    /// and keeps the payloads of the others.
    Change(Range<usize>, usize),
    Replace(Range<usize>, Paint),
    Set(Range<usize>, Paint),
    /// A relocation that keeps each part's payload.
    Relocate(Range<usize>, usize),
    /// A relocation that gives the parts new payloads, as an update does.
    RelocateAs(Range<usize>, usize, Paint),
    Reserve(Range<usize>),
    /// Of the `n`th of the reservations, modulo their number.
    Commit(usize, Paint),
    RollBack(usize),
    /// If there is no exclusion yet: with a second one a thread could wait for itself.
    Exclude(Range<usize>),
    Release,
    /// Copies the space, each VMA or every second one, and goes on with the copy or does not.
    Fork {
        every_second: bool,
        go_on: bool,
    },
    FindGap(Search),
    Get(usize),
    ReadFrom(usize),
}

/// The result of an operation.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// It was done, and returned this.
    Done(Map),
    /// Nothing has changed.
    Refused(Refused),
    /// A copy has these VMAs.
    Forked(Map),
    Gap(Result<Range<usize>, NoGap>),
    Found(Option<(Range<usize>, Part)>),
    /// There is no reservation or exclusion to act on.
    Nothing,
}

impl From<Result<Map, Refused>> for Outcome {
    fn from(result: Result<Map, Refused>) -> Self {
        match result {
            Ok(map) => Self::Done(map),
            Err(refused) => Self::Refused(refused),
        }
    }
}

/// A space with the reservations and the exclusion that were made of it.
pub(crate) struct Side<S: Subject> {
    pub(crate) subject: S,
    granule: usize,
    reservations: Vec<(Range<usize>, S::Reservation)>,
    exclusion: Option<S::Exclusion>,
}

impl<S: Subject> Side<S> {
    pub(crate) fn new(subject: S, granule: usize) -> Self {
        Self { subject, granule, reservations: Vec::new(), exclusion: None }
    }

    /// Does `op`, which is possible.
    #[cfg(test)]
    pub(crate) fn must(&mut self, op: &Op) {
        let outcome = self.run(op);
        assert!(matches!(outcome, Outcome::Done(_) | Outcome::Forked(_)), "{op:?}: {outcome:?}");
    }

    /// Does `op`.
    pub(crate) fn run(&mut self, op: &Op) -> Outcome {
        let Self { subject, reservations, exclusion, granule } = self;
        let paint = |range: &Range<usize>, paint| painted(paint, range.start, *granule);
        match op.clone() {
            Op::Insert(range, with) => {
                let payload = paint(&range, with);
                let given = payload.clone();
                back(subject.insert(range, payload).map(|()| Map::new()), &given)
            }
            Op::InsertMerging(range, with) => {
                let payload = paint(&range, with);
                let given = payload.clone();
                back(subject.insert_merging(range, payload).map(|()| Map::new()), &given)
            }
            Op::Remove(range) => subject.remove(range).into(),
            Op::RemoveWhole(range) => subject.remove_whole(range).into(),
            Op::Retain(every) => {
                let granule = *granule;
                subject.retain(|range, _| !(range.start / granule).is_multiple_of(every)).into()
            }
            Op::RemoveReserving(_) | Op::Exclude(_) if exclusion.is_some() => Outcome::Nothing,
            Op::RemoveReserving(range) => subject
                .remove_reserving(range.clone())
                .map(|(removed, reservation)| {
                    reservations.push((range, reservation));
                    removed
                })
                .into(),
            Op::Update(range, with) => {
                let first = paint(&range, with);
                let start = range.start;
                update(subject, range, |part, _| first.advanced(part.start - start))
            }
            Op::Keep(range) => update(subject, range, |_, old| old.clone()),
            Op::Change(range, every) => {
                let granule = *granule;
                change(subject, range, |part, old| {
                    (!(part.start / granule).is_multiple_of(every)).then(|| old.clone())
                })
            }
            Op::Replace(range, with) => {
                let payload = paint(&range, with);
                let given = payload.clone();
                back(subject.replace(range, payload), &given)
            }
            Op::Set(range, with) => {
                let payload = paint(&range, with);
                let given = payload.clone();
                back(subject.set(range, payload), &given)
            }
            Op::Relocate(from, to) => relocate(subject, from, to, |_, old| old.clone()),
            Op::RelocateAs(from, to, with) => {
                let first = painted(with, to, *granule);
                relocate(subject, from, to, |part, _| first.advanced(part.start - to))
            }
            Op::Reserve(range) => subject
                .reserve(range.clone())
                .map(|reservation| {
                    reservations.push((range, reservation));
                    Map::new()
                })
                .into(),
            Op::Commit(n, with) => {
                let Some((range, reservation)) = pick(reservations, n) else {
                    return Outcome::Nothing;
                };
                subject.commit(reservation, paint(&range, with));
                Outcome::Done(Map::new())
            }
            Op::RollBack(n) => {
                let Some((_, reservation)) = pick(reservations, n) else { return Outcome::Nothing };
                subject.roll_back(reservation);
                Outcome::Done(Map::new())
            }
            Op::Exclude(range) => subject
                .exclude(range)
                .map(|(new, vmas)| {
                    *exclusion = Some(new);
                    vmas
                })
                .into(),
            Op::Release => {
                let Some(exclusion) = exclusion.take() else { return Outcome::Nothing };
                subject.release(exclusion);
                Outcome::Done(Map::new())
            }
            Op::Fork { every_second, go_on } => match fork(subject, every_second) {
                Ok(mut fork) => {
                    let map = fork.map();
                    if go_on {
                        *subject = fork;
                        reservations.clear();
                    }
                    Outcome::Forked(map)
                }
                Err(refused) => Outcome::Refused(refused),
            },
            Op::FindGap(search) => Outcome::Gap(subject.find_gap(&search)),
            Op::Get(addr) => Outcome::Found(subject.get(addr)),
            Op::ReadFrom(addr) => Outcome::Found(subject.read_at_or_after(addr)),
        }
    }
}

/// Checks that a refused operation gives its payload back.
fn back(result: Result<Map, (Refused, Part)>, given: &Part) -> Outcome {
    let result = result.map_err(|(refused, payload)| {
        assert_eq!(payload, *given);
        refused
    });
    result.into()
}

fn painted(paint: Paint, start: usize, granule: usize) -> Part {
    match paint {
        Paint::Letter(letter) => Part::new(letter, granule),
        Paint::File(letter) => Part::new(letter, granule).advanced(start),
    }
}

fn pick<T>(from: &mut Vec<T>, n: usize) -> Option<T> {
    let n = n.checked_rem(from.len())?;
    Some(from.remove(n))
}

/// Updates, and checks that the closure sees each part once, in order, as the update gives it out.
fn update(
    subject: &mut impl Subject,
    range: Range<usize>,
    mut f: impl FnMut(Range<usize>, &Part) -> Part,
) -> Outcome {
    let mut seen = Map::new();
    let result = subject.update(range, |part, payload| {
        seen.push((part.clone(), payload.clone()));
        f(part, payload)
    });
    if let Ok(old) = &result {
        assert_eq!(seen, *old);
    }
    result.into()
}

/// Changes, and checks the same.
fn change(
    subject: &mut impl Subject,
    range: Range<usize>,
    mut f: impl FnMut(Range<usize>, &Part) -> Option<Part>,
) -> Outcome {
    let mut seen = Map::new();
    let result = subject.change(range, |part, payload| {
        seen.push((part.clone(), payload.clone()));
        f(part, payload)
    });
    if let Ok(old) = &result {
        assert_eq!(seen, *old);
    }
    result.into()
}

/// Relocates, and checks that the closure sees each part once, in order, at its new place.
fn relocate(
    subject: &mut impl Subject,
    from: Range<usize>,
    to: usize,
    mut f: impl FnMut(Range<usize>, &Part) -> Part,
) -> Outcome {
    let start = from.start;
    let mut seen = Map::new();
    let result = subject.relocate(from, to, |part, payload| {
        seen.push((part.start - to + start..part.end - to + start, payload.clone()));
        f(part, payload)
    });
    if let Ok(old) = &result {
        assert_eq!(seen, *old);
    }
    result.into()
}

/// Copies the space, and checks that the closure sees each VMA once, in order.
fn fork<S: Subject>(subject: &mut S, every_second: bool) -> Result<S, Refused> {
    let mut seen = Map::new();
    let fork = subject.fork(|range, payload| {
        seen.push((range, payload.clone()));
        (!every_second || seen.len().is_multiple_of(2)).then(|| payload.clone())
    })?;
    assert_eq!(seen, subject.map());
    Ok(fork)
}
