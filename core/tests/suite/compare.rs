//! Long runs of operations on anything and on the oracle beside it, decoded from bytes.

use std::collections::HashSet;
use std::ops::Range;

use pervma_oracle::{Oracle, Search};

use super::identities::Identities;
use super::op::{Op, Outcome, Paint, Side};
use super::part::Part;
use super::subject::{OracleWorld, Subject, World};

/// What to do next, or, at the beginning, where it all happens.
pub(crate) type Record = [u8; 8];

/// Where the operations happen. There are two spaces, on one slab or on two.
#[derive(Clone, Copy, Debug)]
struct Stage {
    base: usize,
    granule: usize,
    /// In granules, from `base` on. Nearly all operations are in here.
    window: usize,
    shared: bool,
}

impl Stage {
    fn decode([granule, base, window, shared, ..]: Record) -> Self {
        let granule = [1, 2, 4096, 1 << 40][usize::from(granule % 4)];
        let window = [16, 64, 256, 1024][usize::from(window % 4)];
        let top = usize::MAX / granule - window;
        let base = [0, (top / 2) * granule, top * granule][usize::from(base % 3)];
        Self { base, granule, window, shared: shared % 4 != 0 }
    }

    fn addr(&self, n: usize) -> usize {
        self.base + n % self.window * self.granule
    }

    fn end(&self) -> usize {
        self.base + self.window * self.granule
    }

    /// What the record says for a space with VMAs and reservations `there`.
    fn ops(&self, record: Record, there: &[Range<usize>]) -> Vec<Op> {
        let [which, flags, s0, s1, len, t0, t1, paint] = record;
        let start = usize::from(u16::from_le_bytes([s0, s1]));
        let to = usize::from(u16::from_le_bytes([t0, t1]));
        let shape = flags >> 2;
        let range = || self.range(shape, start, usize::from(len), there);
        let with = match paint % 16 {
            n @ 0..=6 => Paint::File(char::from(b'a' + n % 2)),
            7 => Paint::Letter('a'),
            n @ 8..=9 => Paint::Letter(char::from(b'A' + n % 2)),
            n @ 10..=12 => Paint::Letter(char::from(b'N' + n % 2)),
            13 => Paint::Letter('0'),
            _ => Paint::File('0'),
        };
        let op = match which % 64 {
            0..=7 => Op::Insert(range(), with),
            8..=9 => Op::InsertMerging(range(), with),
            // A row of VMAs, for a tall tree.
            10..=11 => {
                let apart = if len < 128 { 2 } else { 3 };
                let row = (0..usize::from(len % 64)).map(|n| self.addr(start + apart * n));
                let vma = |addr| Op::Insert(addr..addr + 2 * self.granule, with);
                return row.filter(|addr| addr + self.granule < self.end()).map(vma).collect();
            }
            12..=15 => Op::Remove(range()),
            16..=17 => Op::RemoveWhole(range()),
            18 => Op::Retain(2 + usize::from(len % 8)),
            19..=26 => Op::Update(range(), with),
            27..=28 => Op::Keep(range()),
            // 1 divides all: everything is unmapped.
            29..=30 => Op::Change(range(), 1 + to % 4),
            31..=32 => Op::Replace(range(), with),
            33..=34 => Op::Set(range(), with),
            n @ 35..=44 => {
                let from = range();
                let len = from.end.wrapping_sub(from.start);
                let other = there.get(to % (there.len() + 1));
                let target = match (paint >> 6, other) {
                    (1, Some(other)) => other.start.wrapping_sub(len),
                    (2, Some(other)) => other.end,
                    _ => self.addr(to),
                };
                if n < 38 { Op::RelocateAs(from, target, with) } else { Op::Relocate(from, target) }
            }
            45..=46 => Op::Reserve(range()),
            47..=48 => Op::RemoveReserving(range()),
            49..=50 => Op::Commit(to, with),
            51..=52 => Op::RollBack(to),
            53 => Op::Exclude(range()),
            54..=55 => Op::Release,
            56 => Op::Fork { every_second: len % 2 == 0, go_on: shape % 2 == 0 },
            57..=59 => Op::FindGap(self.search(range(), len, t0, paint)),
            60..=61 => Op::Get(self.addr(start) + to % self.granule),
            _ => Op::ReadFrom(self.addr(start) + to % self.granule),
        };
        vec![op]
    }

    /// Mostly a few granules in, between and around what is `there`; now and then no good range at
    /// all.
    fn range(&self, shape: u8, at: usize, len: usize, there: &[Range<usize>]) -> Range<usize> {
        let g = self.granule;
        let anywhere = self.addr(at);
        let from = |start: usize, granules: usize| {
            let most = self.end().saturating_sub(start) / g;
            start..start + granules.min(most) * g
        };
        let first = at.checked_rem(there.len()).unwrap_or(0);
        let last = (first + (len % 8).saturating_sub(4)).min(there.len().saturating_sub(1));
        let (Some(one), Some(other)) = (there.get(first), there.get(last)) else {
            return from(anywhere, 1 + len % 6);
        };
        match shape {
            0 => anywhere..anywhere,
            1 => Range { start: anywhere + g, end: anywhere },
            2 => anywhere + 1..anywhere + g,
            3 => anywhere..anywhere + g - 1,
            4 => 0..usize::MAX / g * g,
            5 => 0..g,
            6 => from(anywhere, 1 + len),
            7..=11 => from(anywhere, 1 + len % 32),
            12..=19 => one.start..other.end,
            20..=27 => one.start + g..other.end,
            28..=35 => one.start..other.end - g,
            36..=39 => one.start + g..other.end - g,
            40..=43 => from(one.end, 1 + len % 6),
            44..=47 => one.start.saturating_sub((1 + len % 6) * g)..one.start,
            _ => from(anywhere, 1 + len % 6),
        }
    }

    fn search(&self, range: Range<usize>, len: u8, align: u8, shape: u8) -> Search {
        let size = usize::from(len % 32) * self.granule;
        Search {
            size: if shape.is_multiple_of(16) { size + 1 } else { size },
            align: match align % 64 {
                n @ 0..=4 => self.granule << n,
                5 => 0,
                6 => 3 * self.granule,
                n => 1 << n,
            },
            within: match shape % 8 {
                0 => 0..usize::MAX,
                1..=5 => self.base..self.end(),
                6 => range,
                _ => self.base.saturating_add(usize::from(align))..usize::MAX,
            },
            top_down: len >= 128,
        }
    }
}

/// Runs the operations that `records` encode on two spaces of `W` and on two oracles, and compares
/// the results of each operation and both maps after it. Calls `outcomes` with the space, the
/// operation and its result.
pub(crate) fn compare<W: World>(records: &[Record], outcomes: impl FnMut(usize, &Op, &Outcome)) {
    let (first, rest) = records.split_first().unwrap_or((&[0; 8], &[]));
    let stage = Stage::decode(*first);
    let world = W::new(stage.granule, stage.shared);
    run(&world, stage, rest, outcomes);
    world.finish();
    assert_eq!(Part::alive(), 0, "all payloads are dropped");
}

/// Describes the operations that `records` encode, and their results.
pub(crate) fn describe(records: &[Record]) -> String {
    let first = records.first().copied().unwrap_or_default();
    let mut transcript = format!("{:x?}\n", Stage::decode(first));
    compare::<OracleWorld>(records, |which, op, outcome| {
        transcript += &format!("space {which}: {op:x?}: {outcome:x?}\n");
    });
    transcript
}

fn run<W: World>(
    world: &W,
    stage: Stage,
    records: &[Record],
    mut outcomes: impl FnMut(usize, &Op, &Outcome),
) {
    let granule = stage.granule;
    let oracles = OracleWorld::new(granule, false);
    let mut sides = [0, 1].map(|_| Side::new(world.space(), granule));
    let mut models = [0, 1].map(|_| Side::new(oracles.space(), granule));
    let (mut identities, mut given) = ([0, 1].map(|_| Identities::default()), HashSet::new());
    for record in records {
        let which = usize::from(record[1] & 1);
        // The edit goes on afterwards.
        let goes_on = record[1] & 2 != 0;
        for op in stage.ops(*record, &taken(&models[which].subject)) {
            let outcome = sides[which].run(&op);
            assert_eq!(outcome, models[which].run(&op));
            identities[which].follow(&mut sides[which], &op, &outcome, &mut given);
            outcomes(which, &op, &outcome);
        }
        if let Some(id) = identities[which].any() {
            assert_eq!(sides[1 - which].subject.find(id), None, "another space's");
        }
        if !goes_on {
            sides[which].subject.end();
        }
        for (side, model) in sides.iter_mut().zip(&mut models) {
            assert_eq!(side.subject.map(), model.subject.map());
        }
        if goes_on {
            continue;
        }
        let (side, model) = (&mut sides[which].subject, &models[which].subject);
        if let Some(entries) = side.entries() {
            assert_eq!(Some(entries), model.entries(), "memory that is used");
        }
        for range in model.reserved() {
            for addr in [range.start.wrapping_sub(1), range.start, range.end - 1, range.end] {
                let expected = model.reserved().any(|range| range.contains(&addr));
                assert_eq!(side.is_reserved(addr), expected, "{addr:#x}");
            }
        }
    }
}

/// Where VMAs and reservations are, in order.
fn taken(oracle: &Oracle<Part>) -> Vec<Range<usize>> {
    let mapped = oracle.iter().map(|(range, _)| range);
    let mut taken: Vec<_> = mapped.chain(oracle.reserved()).collect();
    taken.sort_by_key(|range| range.start);
    taken
}
