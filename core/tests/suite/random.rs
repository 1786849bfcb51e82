//! Random operations on an implementation and on the oracle. `PROPTEST_CASES` makes the run longer:
//! here it is short, for all the worlds that there are; `.ci/long` runs it for longer.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

use super::compare::{Record, compare, describe};
use super::op::{Op, Outcome};
use super::subject::{OracleWorld, World};

const RECORDS: usize = if cfg!(miri) { 20 } else { 200 };

pub(crate) fn run<W: World>() {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = if cfg!(miri) { 1 } else { 64 };
    }
    let records = prop::collection::vec(any::<Record>(), 1..RECORDS);
    let result = TestRunner::new(config).run(&records, |records| {
        compare::<W>(&records, |_, _, _| ());
        Ok(())
    });
    if let Err(TestError::Fail(reason, records)) = result {
        panic!("{reason}\n{}", describe(&records));
    }
}

/// The possible results of each operation.
const EVERYTHING: &str = "
    Insert: Done Empty Overflow Unaligned Excluded Overlap
    InsertMerging: Done Empty Overflow Unaligned Excluded Overlap
    Remove: Done Empty Overflow Unaligned NotMapped Reserved Excluded PartlyCovered
    RemoveWhole: Done Empty Overflow Unaligned NotMapped Reserved Excluded PartlyCovered
    Retain: Done Excluded
    RemoveReserving: Done Nothing Empty Overflow Unaligned NotMapped Reserved PartlyCovered
    Update: Done Empty Overflow Unaligned NotMapped Reserved Excluded PartlyCovered
    Keep: Done Empty Overflow Unaligned NotMapped Reserved Excluded PartlyCovered
    Change: Done Empty Overflow Unaligned NotMapped Reserved Excluded PartlyCovered
    Replace: Done Empty Overflow Unaligned Reserved Excluded PartlyCovered
    Set: Done Empty Overflow Unaligned Reserved Excluded PartlyCovered
    Relocate: Done Empty Overflow Unaligned NotMapped Reserved Excluded Overlap PartlyCovered
    RelocateAs: Done Empty Overflow Unaligned NotMapped Reserved Excluded Overlap PartlyCovered
    Reserve: Done Empty Overflow Unaligned Excluded Overlap
    Commit: Done Nothing
    RollBack: Done Nothing
    Exclude: Done Nothing Empty Overflow Unaligned NotMapped Reserved
    Release: Done Nothing
    Fork: Forked Excluded
    FindGap: Gap Size Alignment NotFound
    Get: Found
    ReadFrom: Found
";

/// Otherwise the comparison might compare nothing.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn random_records_bring_everything_about() {
    let name = |value: String| value.split(|c: char| !c.is_alphabetic()).next().unwrap().to_owned();
    let mut seen = BTreeSet::new();
    let mut note = |_, op: &Op, outcome: &Outcome| {
        let outcome = match outcome {
            Outcome::Refused(refused) => name(format!("{refused:?}")),
            Outcome::Gap(Err(none)) => name(format!("{none:?}")),
            outcome => name(format!("{outcome:?}")),
        };
        seen.insert(format!("{} {outcome}", name(format!("{op:?}"))));
    };
    let mut random = 1_u64;
    for _ in 0..100 {
        let records: Vec<Record> = (0..RECORDS)
            .map(|_| {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (random ^ random >> 32).to_le_bytes()
            })
            .collect();
        compare::<OracleWorld>(&records, &mut note);
    }
    let expected: BTreeSet<_> = EVERYTHING
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .flat_map(|(op, outcomes)| outcomes.split(' ').map(move |o| format!("{op} {o}")))
        .collect();
    assert_eq!(seen, expected);
}
