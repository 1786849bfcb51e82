//! Cases that columns cannot show: invalid ranges, alignment, and the ends of the address space.

use std::ops::Range;

use pervma_oracle::{NoGap, Refused, Search};

use super::op::Op::{self, *};
use super::op::Paint::Letter;
use super::op::{Outcome, Side};
use super::part::Part;
use super::subject::{Subject, World};

const PAGE: usize = 4096;
const TOP: usize = usize::MAX - (PAGE - 1);

/// Every operation that takes a range, with `range`.
fn with(range: &Range<usize>) -> [Op; 9] {
    let range = || range.clone();
    [
        Insert(range(), Letter('A')),
        Remove(range()),
        RemoveReserving(range()),
        Update(range(), Letter('A')),
        Keep(range()),
        Replace(range(), Letter('A')),
        Relocate(range(), 8 * PAGE),
        Reserve(range()),
        Exclude(range()),
    ]
}

pub(crate) fn bad_ranges<W: World>() {
    let world = W::new(PAGE, false);
    let mut side = Side::new(world.space(), PAGE);
    // Neither what is mapped nor what is reserved is looked at before.
    side.must(&Insert(0..PAGE, Letter('0')));
    side.must(&Insert(PAGE..2 * PAGE, Letter('A')));
    side.must(&Reserve(2 * PAGE..3 * PAGE));
    let bad = [
        (PAGE..PAGE, Refused::Empty(PAGE)),
        (PAGE + 1..PAGE + 1, Refused::Empty(PAGE + 1)),
        (Range { start: 2 * PAGE, end: PAGE }, Refused::Overflow(2 * PAGE, PAGE)),
        (Range { start: 3, end: 1 }, Refused::Overflow(3, 1)),
        (1..2 * PAGE, Refused::Unaligned(1)),
        (1..PAGE + 2, Refused::Unaligned(1)),
        (PAGE..3 * PAGE + 1, Refused::Unaligned(3 * PAGE + 1)),
        (0..usize::MAX, Refused::Unaligned(usize::MAX)),
        (5 * PAGE + 1..6 * PAGE, Refused::Unaligned(5 * PAGE + 1)),
    ];
    for (range, refused) in &bad {
        for op in with(range) {
            assert_eq!(side.run(&op), Outcome::Refused(refused.clone()), "{op:?}");
        }
    }
    let targets = [
        (1, Refused::Unaligned(1)),
        (TOP, Refused::Overflow(TOP, 2 * PAGE)),
        (TOP - 2 * PAGE, Refused::Overflow(TOP - 2 * PAGE, 0)),
        (TOP + 1, Refused::Overflow(TOP + 1, 2 * PAGE + 1)),
    ];
    for (to, refused) in targets {
        let op = Relocate(0..3 * PAGE, to);
        assert_eq!(side.run(&op), Outcome::Refused(refused), "{op:?}");
    }
    let both = Relocate(1..PAGE, 2);
    assert_eq!(side.run(&both), Outcome::Refused(Refused::Unaligned(1)));
}

/// Where a gap is found depends on which side of what is mapped has free space.
pub(crate) fn gaps<W: World>() {
    let everywhere = 0..usize::MAX;
    let find = |side: &mut Side<W::Space<'_>>, size, align, within: &Range<usize>| {
        [false, true].map(|top_down| {
            let search = Search { size, align, within: within.clone(), top_down };
            match side.run(&FindGap(search)) {
                Outcome::Gap(found) => found.map(|gap| {
                    assert_eq!(gap.end - gap.start, size);
                    gap.start
                }),
                other => panic!("{other:?}"),
            }
        })
    };
    let world = W::new(PAGE, false);
    let mut pages = Side::new(world.space(), PAGE);
    for (size, align, refused) in [
        (0, PAGE, NoGap::Size(0)),
        (1, PAGE, NoGap::Size(1)),
        (PAGE + 8, 3, NoGap::Size(PAGE + 8)),
        (usize::MAX, PAGE, NoGap::Size(usize::MAX)),
        (PAGE, 0, NoGap::Alignment(0)),
        (PAGE, 3 * PAGE, NoGap::Alignment(3 * PAGE)),
        (PAGE, usize::MAX, NoGap::Alignment(usize::MAX)),
    ] {
        for within in [0..0, everywhere.clone()] {
            assert_eq!(find(&mut pages, size, align, &within), [Err(refused); 2]);
        }
    }
    // An empty space: from end to end.
    assert_eq!(find(&mut pages, PAGE, 1, &everywhere), [Ok(0), Ok(TOP - PAGE)]);
    assert_eq!(find(&mut pages, TOP, PAGE, &everywhere), [Ok(0); 2]);
    assert_eq!(find(&mut pages, PAGE, 1 << 63, &everywhere), [Ok(0), Ok(1 << 63)]);
    assert_eq!(find(&mut pages, PAGE, 1 << 63, &(1..1 << 63)), [Err(NoGap::NotFound); 2]);
    // The edges of the window need not be aligned.
    assert_eq!(find(&mut pages, PAGE, 1, &(1..3 * PAGE + 5)), [Ok(PAGE), Ok(2 * PAGE)]);
    assert_eq!(find(&mut pages, PAGE, 1, &(1..2 * PAGE - 1)), [Err(NoGap::NotFound); 2]);
    let reversed = Range { start: 8 * PAGE, end: PAGE };
    assert_eq!(find(&mut pages, PAGE, 1, &reversed), [Err(NoGap::NotFound); 2]);
    // A gap is passed over when what is aligned need not fit in it, unless that is so of all.
    for page in [1, 4, 16, 20] {
        pages.must(&Insert(page * PAGE..(page + 1) * PAGE, Letter('A')));
    }
    let window = 0..20 * PAGE;
    assert_eq!(find(&mut pages, PAGE, 2 * PAGE, &window), [Ok(2 * PAGE), Ok(18 * PAGE)]);
    assert_eq!(find(&mut pages, 2 * PAGE, 4 * PAGE, &window), [Ok(8 * PAGE), Ok(12 * PAGE)]);
    assert_eq!(find(&mut pages, 4 * PAGE, 8 * PAGE, &window), [Ok(8 * PAGE); 2]);
    assert_eq!(find(&mut pages, 3 * PAGE, 2 * PAGE, &window), [Ok(6 * PAGE), Ok(12 * PAGE)]);
    assert_eq!(find(&mut pages, 8 * PAGE, 8 * PAGE, &window), [Ok(8 * PAGE); 2]);
    assert_eq!(find(&mut pages, 9 * PAGE, 2 * PAGE, &window), [Ok(6 * PAGE); 2]);
    assert_eq!(find(&mut pages, 11 * PAGE, 2 * PAGE, &window), [Err(NoGap::NotFound); 2]);

    let world = W::new(1, false);
    let mut bytes = Side::new(world.space(), 1);
    assert_eq!(find(&mut bytes, 1, 1, &everywhere), [Ok(0), Ok(usize::MAX - 1)]);
    assert_eq!(find(&mut bytes, usize::MAX, 1, &everywhere), [Ok(0); 2]);
    assert_eq!(find(&mut bytes, 1, PAGE, &everywhere), [Ok(0), Ok(TOP)]);
    bytes.must(&Insert(0..1, Letter('A')));
    assert_eq!(find(&mut bytes, usize::MAX, 1, &everywhere), [Err(NoGap::NotFound); 2]);
    assert_eq!(find(&mut bytes, usize::MAX - 1, 1, &everywhere), [Ok(1); 2]);
    assert_eq!(find(&mut bytes, 1 << 63, 1 << 63, &everywhere), [Err(NoGap::NotFound); 2]);
    assert_eq!(find(&mut bytes, (1 << 63) - 1, 1 << 63, &everywhere), [Ok(1 << 63); 2]);
    bytes.must(&Insert(usize::MAX - 1..usize::MAX, Letter('A')));
    assert_eq!(find(&mut bytes, 1, 1, &everywhere), [Ok(1), Ok(usize::MAX - 2)]);
}

/// A range cannot hold the last address, so nothing is ever there.
pub(crate) fn ends<W: World>() {
    let world = W::new(1, false);
    let mut side = Side::new(world.space(), 1);
    let all = 0..usize::MAX;
    side.must(&Insert(all.clone(), Letter('A')));
    let found = |range: Range<usize>| Outcome::Found(Some((range, Part::new('A', 1))));
    assert_eq!(side.run(&Get(0)), found(all.clone()));
    assert_eq!(side.run(&Get(usize::MAX - 1)), found(all.clone()));
    assert_eq!(side.run(&Get(usize::MAX)), Outcome::Found(None));
    assert_eq!(side.run(&ReadFrom(usize::MAX - 1)), found(all.clone()));
    assert_eq!(side.run(&ReadFrom(usize::MAX)), Outcome::Found(None));

    side.must(&Remove(1..usize::MAX - 1));
    assert_eq!(side.run(&ReadFrom(1)), found(usize::MAX - 1..usize::MAX));
    // Across the whole address space, both ways.
    side.must(&Relocate(0..1, usize::MAX - 2));
    assert_eq!(side.run(&Get(usize::MAX - 1)), found(usize::MAX - 2..usize::MAX));
    side.must(&Relocate(usize::MAX - 2..usize::MAX, 0));
    assert_eq!(side.run(&Get(0)), found(0..2));
    let wraps = Outcome::Refused(Refused::Overflow(usize::MAX, 0));
    assert_eq!(side.run(&Relocate(0..1, usize::MAX)), wraps);
    side.must(&Remove(all.clone()));
    assert_eq!(side.run(&ReadFrom(0)), Outcome::Found(None));

    side.must(&Reserve(all.clone()));
    assert!(side.subject.is_reserved(0) && side.subject.is_reserved(usize::MAX - 1));
    assert!(!side.subject.is_reserved(usize::MAX));
    side.must(&Commit(0, Letter('A')));
    assert_eq!(side.run(&Get(7)), found(all));
}
