//! What each operation does, case by case.
//!
//! A case shows the space before and after, and the operation's result; addresses are columns.
//! Every case runs at both ends of the address space and between, with granules of one byte and of
//! a page, without and with so many other VMAs that the tree grows, on memory of its own and
//! shared.

use std::ops::Range;

use pervma_oracle::{NoGap, Refused, Search};

use super::op::Op::{self, *};
use super::op::Paint::Letter;
use super::op::{Outcome, Side};
use super::part::Part;
use super::picture::{Place, columns, draw, look, make, plain};
use super::subject::{Map, Subject, World};

pub(crate) struct Case {
    before: &'static str,
    ops: &'static [Op],
    after: &'static str,
    comes: Comes,
}

/// The result of the last operation.
enum Comes {
    /// It is done, and gives this out.
    Out(&'static str),
    Refused(Refused),
    /// A copy like this.
    Copy(&'static str),
    Gap(Range<usize>),
    NoGap,
    Found(&'static str),
}

const fn done(before: &'static str, ops: &'static [Op], after: &'static str) -> Case {
    Case { before, ops, after, comes: Comes::Out("") }
}

const fn gives(
    before: &'static str,
    ops: &'static [Op],
    after: &'static str,
    out: &'static str,
) -> Case {
    Case { before, ops, after, comes: Comes::Out(out) }
}

/// Nothing has changed.
const fn fails(before: &'static str, ops: &'static [Op], refused: Refused) -> Case {
    Case { before, ops, after: before, comes: Comes::Refused(refused) }
}

const fn copies(before: &'static str, ops: &'static [Op], copy: &'static str) -> Case {
    Case { before, ops, after: before, comes: Comes::Copy(copy) }
}

const fn finds(before: &'static str, ops: &'static [Op], found: &'static str) -> Case {
    Case { before, ops, after: before, comes: Comes::Found(found) }
}

const fn gap(before: &'static str, ops: &'static [Op], found: Range<usize>) -> Case {
    Case { before, ops, after: before, comes: Comes::Gap(found) }
}

const fn no_gap(before: &'static str, ops: &'static [Op]) -> Case {
    Case { before, ops, after: before, comes: Comes::NoGap }
}

const INSERT: &[Case] = &[
    done("......", &[Insert(1..4, Letter('a'))], ".abc.."),
    done("......", &[Insert(0..6, Letter('a'))], "abcdef"),
    // It is not merged with what it touches.
    done("ab..ef", &[Insert(2..4, Letter('c'))], "ab|cd|ef"),
    done("##..##", &[Insert(2..4, Letter('c'))], "##cd##"),
    // In the way.
    fails("..ab..", &[Insert(0..6, Letter('A'))], Refused::Overlap(2..4)),
    fails("..ab..", &[Insert(2..4, Letter('A'))], Refused::Overlap(2..4)),
    fails("..ab..", &[Insert(3..5, Letter('A'))], Refused::Overlap(2..4)),
    fails("..ab..", &[Insert(1..3, Letter('A'))], Refused::Overlap(2..4)),
    fails(".abcd.", &[Insert(2..3, Letter('A'))], Refused::Overlap(1..5)),
    fails("A.B.##", &[Insert(1..5, Letter('A'))], Refused::Overlap(2..3)),
    fails("..##..", &[Insert(3..5, Letter('A'))], Refused::Overlap(2..4)),
    fails(".##.AA", &[Insert(0..6, Letter('A'))], Refused::Overlap(1..3)),
    fails("..(ab)..", &[Insert(3..5, Letter('A'))], Refused::Excluded(2..4)),
    fails("AA.(BB).", &[Insert(1..6, Letter('A'))], Refused::Overlap(0..2)),
    fails("(AA).BB.", &[Insert(1..6, Letter('A'))], Refused::Excluded(0..2)),
];

const REMOVE: &[Case] = &[
    gives(".abcdef.", &[Remove(1..7)], "........", ".abcdef."),
    gives(".abcdef.", &[Remove(0..8)], "........", ".abcdef."),
    // Split at the edges.
    gives(".abcdef.", &[Remove(3..5)], ".ab..ef.", "...cd..."),
    gives(".abcdef.", &[Remove(1..2)], "..bcdef.", ".a......"),
    gives(".abcdef.", &[Remove(6..7)], ".abcde..", "......f."),
    gives(".abcdef.", &[Remove(0..3)], "...cdef.", ".ab....."),
    gives(".abcdef.", &[Remove(5..8)], ".abcd...", ".....ef."),
    gives("abcdef", &[Remove(0..1)], ".bcdef", "a....."),
    gives("abcdef", &[Remove(5..6)], "abcde.", ".....f"),
    // Across VMAs and holes.
    gives("abAAcd", &[Remove(1..5)], "a....d", ".bAAc."),
    gives("AA|AA", &[Remove(1..3)], "A..A", ".A|A."),
    gives("ab..AA.cd", &[Remove(1..8)], "a.......d", ".b..AA.c."),
    gives("ab..AA.cd", &[Remove(2..7)], "ab.....cd", "....AA..."),
    gives("A|A|A|A|A", &[Remove(1..4)], "A...A", ".A|A|A."),
    // What is beside does not matter.
    gives("##ab##", &[Remove(2..4)], "##..##", "..ab.."),
    gives("(AA)BB", &[Remove(2..4)], "AA..", "..BB"),
    gives("BB(CC)", &[Remove(0..2)], "..CC", "BB.."),
    // Nothing there.
    fails(".ab..cd.", &[Remove(3..5)], Refused::NotMapped(3..5)),
    fails(".ab..cd.", &[Remove(0..1)], Refused::NotMapped(0..1)),
    fails(".ab...cd.", &[Remove(4..5)], Refused::NotMapped(4..5)),
    // Excluded by others.
    fails("ab.##.cd", &[Remove(0..8)], Refused::Reserved(3..5)),
    fails("ab.##.cd", &[Remove(4..5)], Refused::Reserved(3..5)),
    fails("ab.##.cd", &[Remove(2..6)], Refused::Reserved(3..5)),
    fails("#.#.#.ab", &[Remove(1..8)], Refused::Reserved(2..3)),
    fails("AA(BB)CC", &[Remove(0..6)], Refused::Excluded(2..4)),
    fails("AA(BB)CC", &[Remove(3..5)], Refused::Excluded(2..4)),
    fails("AA(BBCC)", &[Remove(1..5)], Refused::Excluded(2..4)),
    fails("(AA).##.", &[Remove(0..6)], Refused::Reserved(3..5)),
    // Cannot be split.
    fails("01234567", &[Remove(2..6)], Refused::PartlyCovered(0..8)),
    fails("01234567", &[Remove(2..4)], Refused::PartlyCovered(0..8)),
    fails("01234567", &[Remove(4..6)], Refused::PartlyCovered(0..8)),
    fails("01234567", &[Remove(6..8)], Refused::PartlyCovered(0..8)),
    fails("0123.0123", &[Remove(2..7)], Refused::PartlyCovered(0..4)),
    fails("abcd.0123", &[Remove(2..7)], Refused::PartlyCovered(5..9)),
    fails("0123.abcd", &[Remove(2..7)], Refused::PartlyCovered(0..4)),
    fails("0123.##.", &[Remove(2..7)], Refused::Reserved(5..7)),
    fails("0123.(AA)", &[Remove(2..7)], Refused::Excluded(5..7)),
    gives("01234567", &[Remove(4..8)], "0123....", "....4567"),
    gives("ab0123cd", &[Remove(1..7)], "a......d", ".b0123c."),
];

const UPDATE: &[Case] = &[
    // Split at the edges.
    gives(".abcdef.", &[Update(3..5, Letter('A'))], ".abAAef.", "...cd..."),
    gives(".abcdef.", &[Update(1..3, Letter('A'))], ".AAcdef.", ".ab....."),
    gives(".abcdef.", &[Update(5..7, Letter('A'))], ".abcdAA.", ".....ef."),
    gives("abcdef", &[Update(0..6, Letter('A'))], "AAAAAA", "abcdef"),
    // Parts in the range are merged if they can be.
    gives("abBBcd", &[Update(1..5, Letter('A'))], "aAAAAd", ".bBBc."),
    gives("ABC", &[Update(0..3, Letter('a'))], "abc", "ABC"),
    gives("ab|cd|ef", &[Keep(0..6)], "abcdef", "ab|cd|ef"),
    gives("abdegh", &[Keep(0..6)], "abdegh", "abdegh"),
    // What was split is merged again.
    gives(".abcdef.", &[Keep(3..5)], ".abcdef.", "...cd..."),
    gives(".abcdef.", &[Keep(2..7)], ".abcdef.", "..bcdef."),
    gives(".abcdef.", &[Update(3..5, Letter('c'))], ".abcdef.", "...cd..."),
    // Merged with the left one, the right one, both.
    gives("abAA..", &[Update(2..4, Letter('c'))], "abcd..", "..AA.."),
    gives("..AAcd", &[Update(2..4, Letter('a'))], "..abcd", "..AA.."),
    gives("abAAef", &[Update(2..4, Letter('c'))], "abcdef", "..AA.."),
    gives("abAAef", &[Update(2..4, Letter('d'))], "abdeef", "..AA.."),
    gives("AA|AA|AA", &[Keep(2..4)], "AAAAAA", "..AA.."),
    gives("AABBAA", &[Update(2..4, Letter('A'))], "AAAAAA", "..BB.."),
    // But with none that does not touch, and none beyond the rest of a split VMA.
    gives("A|A|A|A|A", &[Keep(2..3)], "A|AAA|A", "..A.."),
    gives("AA|AA", &[Keep(3..4)], "AA|AA", "...A"),
    gives("AA|AA", &[Keep(0..1)], "AA|AA", "A..."),
    gives("A.A.A", &[Keep(2..3)], "A.A.A", "..A.."),
    // From left to right: a merged VMA may be merged with the next.
    gives("N|N|N|N|N", &[Keep(0..5)], "NNN|NN", "N|N|N|N|N"),
    gives("NN|NN|NN", &[Keep(0..6)], "NNNN|NN", "NN|NN|NN"),
    gives("NN|N|N", &[Keep(2..3)], "NNN|N", "..N."),
    gives("N|N|NN", &[Keep(1..2)], "NNNN", ".N.."),
    gives("NNNN|N|N", &[Keep(4..5)], "NNNN|NN", "....N."),
    gives("NNNNNN", &[Keep(1..5)], "NNNNN|N", ".NNNN."),
    // Excluded by others: not merged.
    gives("(AA)BB.", &[Update(2..4, Letter('A'))], "AA|AA.", "..BB."),
    gives(".BB(AA)", &[Update(1..3, Letter('A'))], ".AA|AA", ".BB.."),
    gives("##ABBA##", &[Update(3..5, Letter('A'))], "##AAAA##", "...BB..."),
    // Not all of it is mapped.
    fails("ab..cd", &[Keep(0..6)], Refused::NotMapped(2..4)),
    fails("ab..cd", &[Keep(3..6)], Refused::NotMapped(3..4)),
    fails("ab..cd", &[Keep(1..3)], Refused::NotMapped(2..3)),
    fails("ab..cd", &[Keep(2..4)], Refused::NotMapped(2..4)),
    fails("......", &[Keep(2..4)], Refused::NotMapped(2..4)),
    fails("ab.c.d", &[Keep(0..6)], Refused::NotMapped(2..3)),
    fails(".abcd.", &[Keep(1..6)], Refused::NotMapped(5..6)),
    fails(".abcd.", &[Keep(0..5)], Refused::NotMapped(0..1)),
    fails("ab##.c", &[Keep(0..6)], Refused::NotMapped(4..5)),
    fails("(AA).cd", &[Keep(0..5)], Refused::NotMapped(2..3)),
    fails("0123.A", &[Keep(1..6)], Refused::NotMapped(4..5)),
    // Excluded by others.
    fails("ab##cd", &[Keep(1..5)], Refused::Reserved(2..4)),
    fails("ab##cd", &[Keep(3..5)], Refused::Reserved(2..4)),
    fails("ab##cd", &[Keep(2..4)], Refused::Reserved(2..4)),
    fails("(AA)##cd", &[Keep(1..5)], Refused::Reserved(2..4)),
    fails("ab(AA)cd", &[Keep(1..5)], Refused::Excluded(2..4)),
    fails("0123(AA)", &[Keep(1..5)], Refused::Excluded(4..6)),
    // Cannot be split.
    fails("01234567", &[Keep(2..6)], Refused::PartlyCovered(0..8)),
    fails("01234567", &[Keep(4..6)], Refused::PartlyCovered(0..8)),
    fails("abcd0123", &[Keep(2..6)], Refused::PartlyCovered(4..8)),
    fails("0123abcd", &[Keep(2..6)], Refused::PartlyCovered(0..4)),
    gives("01234567", &[Update(4..8, Letter('A'))], "0123AAAA", "....4567"),
    gives("01234567", &[Keep(0..4)], "01234567", "0123...."),
];

const REPLACE: &[Case] = &[
    done("......", &[Replace(1..4, Letter('a'))], ".abc.."),
    gives(".abcd.", &[Replace(1..5, Letter('A'))], ".AAAA.", ".abcd."),
    gives("abcdef", &[Replace(2..4, Letter('A'))], "abAAef", "..cd.."),
    gives("abc..def", &[Replace(2..6, Letter('A'))], "abAAAAef", "..c..d.."),
    gives("A.B.CC", &[Replace(1..5, Letter('a'))], "AabcdC", "..B.C."),
    // Nothing is merged, what is replaced neither.
    done("ab..ef", &[Replace(2..4, Letter('c'))], "ab|cd|ef"),
    gives("AAAAAA", &[Replace(2..4, Letter('A'))], "AA|AA|AA", "..AA.."),
    gives("ab|cd", &[Replace(1..3, Letter('A'))], "aAAd", ".b|c."),
    // Excluded by others.
    fails("ab.##.", &[Replace(0..6, Letter('A'))], Refused::Reserved(3..5)),
    fails("..##..", &[Replace(3..5, Letter('A'))], Refused::Reserved(2..4)),
    fails("(AA)##", &[Replace(1..4, Letter('A'))], Refused::Reserved(2..4)),
    fails("AA(BB).", &[Replace(0..5, Letter('A'))], Refused::Excluded(2..4)),
    fails("0123(BB)", &[Replace(2..6, Letter('A'))], Refused::Excluded(4..6)),
    gives("##ab(BB)", &[Replace(2..4, Letter('A'))], "##AABB", "..ab.."),
    // Cannot be split.
    fails("01234567", &[Replace(2..6, Letter('A'))], Refused::PartlyCovered(0..8)),
    fails("01234567", &[Replace(4..6, Letter('A'))], Refused::PartlyCovered(0..8)),
    fails("abcd0123", &[Replace(2..6, Letter('A'))], Refused::PartlyCovered(4..8)),
];

const SET: &[Case] = &[
    done("......", &[Set(1..4, Letter('a'))], ".abc.."),
    gives("abc..def", &[Set(2..6, Letter('A'))], "abAAAAef", "..c..d.."),
    // Merged with what touches it: the left one, the right one, both, what is left of one.
    done("ab..ef", &[Set(2..4, Letter('c'))], "abcdef"),
    done("ab..ff", &[Set(2..4, Letter('c'))], "abcdff"),
    gives("BBCCAA", &[Set(2..4, Letter('A'))], "BBAAAA", "..CC.."),
    gives("AACCBB", &[Set(2..4, Letter('A'))], "AAAABB", "..CC.."),
    gives("AAAAAA", &[Set(2..4, Letter('A'))], "AAAAAA", "..AA.."),
    gives("ab|cd", &[Set(1..3, Letter('b'))], "abcd", ".b|c."),
    gives("AAB.CAA", &[Set(2..5, Letter('A'))], "AAAAAAA", "..B.C.."),
    // The left one first, which then may be too long for the right one.
    done("NN..N", &[Set(2..4, Letter('N'))], "NNNN|N"),
    done("..N", &[Set(0..2, Letter('N'))], "NNN"),
    // What others exclude stays.
    done("(AA)..AA", &[Set(2..4, Letter('A'))], "AA|AAAA"),
    done("AA..(AA)", &[Set(2..4, Letter('A'))], "AAAA|AA"),
    fails("AA(BB).", &[Set(0..5, Letter('A'))], Refused::Excluded(2..4)),
    fails("ab.##.", &[Set(0..6, Letter('A'))], Refused::Reserved(3..5)),
    fails("01234567", &[Set(2..6, Letter('A'))], Refused::PartlyCovered(0..8)),
];

const INSERT_MERGING: &[Case] = &[
    done("......", &[InsertMerging(1..4, Letter('a'))], ".abc.."),
    done("ab..ef", &[InsertMerging(2..4, Letter('c'))], "abcdef"),
    done("ab..AA", &[InsertMerging(2..4, Letter('c'))], "abcdAA"),
    done("AA..ef", &[InsertMerging(2..4, Letter('c'))], "AAcdef"),
    done("ab...f", &[InsertMerging(2..4, Letter('c'))], "abcd.f"),
    done("AA|AA..", &[InsertMerging(4..6, Letter('A'))], "AA|AAAA"),
    done("##..##", &[InsertMerging(2..4, Letter('c'))], "##cd##"),
    done("(AA)..AA", &[InsertMerging(2..4, Letter('A'))], "AA|AAAA"),
    fails("..ab..", &[InsertMerging(0..6, Letter('A'))], Refused::Overlap(2..4)),
    fails("..AA..", &[InsertMerging(3..5, Letter('A'))], Refused::Overlap(2..4)),
    fails("..##..", &[InsertMerging(3..5, Letter('A'))], Refused::Overlap(2..4)),
    fails("..(ab)..", &[InsertMerging(3..5, Letter('A'))], Refused::Excluded(2..4)),
];

const REMOVE_WHOLE: &[Case] = &[
    gives(".abcdef.", &[RemoveWhole(1..7)], "........", ".abcdef."),
    gives(".01.AA.", &[RemoveWhole(0..7)], ".......", ".01.AA."),
    gives("AA|AA|AA", &[RemoveWhole(2..4)], "AA..AA", "..AA.."),
    fails("..##..", &[RemoveWhole(0..6)], Refused::Reserved(2..4)),
    fails("......", &[RemoveWhole(1..6)], Refused::NotMapped(1..6)),
    fails("AA(BB)", &[RemoveWhole(1..4)], Refused::Excluded(2..4)),
    fails("AABBCC", &[RemoveWhole(0..3)], Refused::PartlyCovered(2..4)),
    fails("AABBCC", &[RemoveWhole(1..4)], Refused::PartlyCovered(0..2)),
    fails("AABBCC", &[RemoveWhole(1..5)], Refused::PartlyCovered(0..2)),
    fails("AAAA", &[RemoveWhole(1..3)], Refused::PartlyCovered(0..4)),
];

const RELOCATE: &[Case] = &[
    gives("ab....", &[Relocate(0..2, 3)], "...ab.", "ab...."),
    gives("...ab.", &[Relocate(3..5, 0)], "ab....", "...ab."),
    gives("ab..", &[Relocate(0..2, 2)], "..ab", "ab.."),
    gives("..ab", &[Relocate(2..4, 0)], "ab..", "..ab"),
    // Split at the edges.
    gives("abcdef....", &[Relocate(2..4, 7)], "ab..ef.cd.", "..cd......"),
    gives("abcdef....", &[Relocate(0..2, 7)], "..cdef.ab.", "ab........"),
    gives("abcdef....", &[Relocate(4..6, 7)], "abcd...ef.", "....ef...."),
    // Holes stay holes.
    gives("a.B.cc......", &[Relocate(0..5, 6)], ".....ca.B.c.", "a.B.c......."),
    gives("..ab.........", &[Relocate(0..6, 7)], ".........ab..", "..ab........."),
    gives(".......A.B...", &[Relocate(6..12, 0)], ".A.B.........", ".......A.B..."),
    // Merged with the left one, the right one, both.
    gives("ab...cd", &[Relocate(5..7, 2)], "abcd...", ".....cd"),
    gives("ab...cd", &[Relocate(0..2, 3)], "...abcd", "ab....."),
    gives("ab..ef.cd", &[Relocate(7..9, 2)], "abcdef...", ".......cd"),
    gives("ab..ef.bc", &[Relocate(7..9, 2)], "abbcef...", ".......bc"),
    gives("A|A..A.A", &[Relocate(6..7, 2)], "A|AA.A..", "......A"),
    // Also with what is left of a VMA that was split at the source.
    gives("AAAA....", &[Relocate(0..2, 4)], "..AAAA..", "AA......"),
    gives("....AAAA", &[Relocate(6..8, 2)], "..AAAA..", "......AA"),
    // But only with what touches a part, and nothing beyond that, the rest of a split VMA neither.
    gives(".AA|AA..", &[Relocate(1..2, 5)], "..A|AAA.", ".A....."),
    gives("..AA|AA.", &[Relocate(5..6, 1)], ".AAA|A..", ".....A."),
    gives("ab.....cd", &[Relocate(6..9, 2)], "ab.cd....", ".......cd"),
    gives("cd...ab...", &[Relocate(5..8, 2)], "cdab......", ".....ab..."),
    gives(".cd.ab....", &[Relocate(0..3, 6)], "....ab.cd.", ".cd......."),
    // Parts that touch are merged if they can be, from left to right.
    gives("ab|cd.....", &[Relocate(0..4, 5)], ".....abcd", "ab|cd....."),
    gives("N|N|N|N|N......", &[Relocate(0..5, 6)], "......NNN|NN", "N|N|N|N|N......"),
    gives("NN..N.N|N..", &[Relocate(6..8, 2)], "NNN|NN.....", "......N|N.."),
    // With new payloads.
    gives("ab....", &[RelocateAs(0..2, 3, Letter('A'))], "...AA.", "ab...."),
    gives("abAB...", &[RelocateAs(1..3, 4, Letter('A'))], "a..BAA.", ".bA...."),
    gives("AB...cd", &[RelocateAs(0..2, 3, Letter('a'))], "...abcd", "AB....."),
    gives("A.B....d", &[RelocateAs(0..3, 4, Letter('a'))], "....a.cd", "A.B....."),
    // Nothing to move.
    fails(".ab..cd.", &[Relocate(3..5, 0)], Refused::NotMapped(3..5)),
    fails(".ab..cd.", &[Relocate(3..5, 4)], Refused::NotMapped(3..5)),
    // Excluded by others.
    fails("ab##....", &[Relocate(1..4, 5)], Refused::Reserved(2..4)),
    fails("..##....", &[Relocate(1..4, 5)], Refused::Reserved(2..4)),
    fails("(AA)##.CC", &[Relocate(1..3, 5)], Refused::Reserved(2..4)),
    fails("A(BB).CC.", &[Relocate(0..3, 4)], Refused::Excluded(1..3)),
    fails("A(BB)....", &[Relocate(0..3, 2)], Refused::Excluded(1..3)),
    gives("(AA)...AA.", &[Relocate(5..7, 2)], "AA|AA....", ".....AA."),
    gives("AA...(AA)", &[Relocate(0..2, 3)], "...AA|AA", "AA....."),
    gives("AA...##", &[Relocate(0..2, 3)], "...AA##", "AA....."),
    // In the way.
    fails("abc...", &[Relocate(0..3, 2)], Refused::Overlap(0..3)),
    fails("abc...", &[Relocate(0..3, 0)], Refused::Overlap(0..3)),
    fails("..abc.", &[Relocate(2..5, 1)], Refused::Overlap(2..5)),
    fails("AA.bc.", &[Relocate(2..5, 1)], Refused::Overlap(2..5)),
    fails("ab.AA.", &[Relocate(0..2, 2)], Refused::Overlap(3..5)),
    fails("ab.AA.", &[Relocate(0..2, 4)], Refused::Overlap(3..5)),
    fails("abcdef", &[Relocate(0..2, 2)], Refused::Overlap(0..6)),
    fails("ab..##A", &[Relocate(0..3, 3)], Refused::Overlap(4..6)),
    fails("ab..(CC).", &[Relocate(0..2, 3)], Refused::Overlap(4..6)),
    fails("abc(DD)", &[Relocate(0..3, 2)], Refused::Overlap(0..3)),
    fails("01234567AA", &[Relocate(2..4, 8)], Refused::Overlap(8..10)),
    // Cannot be split.
    fails("01234567..", &[Relocate(2..4, 8)], Refused::PartlyCovered(0..8)),
    fails("01234567..", &[Relocate(4..6, 8)], Refused::PartlyCovered(0..8)),
    gives("01234567....", &[Relocate(4..8, 8)], "0123....4567", "....4567...."),
];

const RESERVE: &[Case] = &[
    done("......", &[Reserve(1..4)], ".###.."),
    done("ab..cd", &[Reserve(2..4)], "ab##cd"),
    fails("..ab..", &[Reserve(3..5)], Refused::Overlap(2..4)),
    fails("..##..", &[Reserve(1..3)], Refused::Overlap(2..4)),
    fails("A.(BB)", &[Reserve(0..4)], Refused::Overlap(0..1)),
    fails("A.(BB)", &[Reserve(1..4)], Refused::Excluded(2..4)),
    done("ab##ef", &[Commit(0, Letter('c'))], "ab|cd|ef"),
    done("##.##.", &[Commit(1, Letter('c'))], "##.cd."),
    done("ab##ef", &[RollBack(0)], "ab..ef"),
    done("##.##.", &[RollBack(0)], "...##."),
    done("##....", &[RollBack(0), Insert(0..2, Letter('a'))], "ab...."),
    gives("##....", &[Commit(0, Letter('a')), Remove(1..2)], "a.....", ".b...."),
];

const REMOVE_RESERVING: &[Case] = &[
    gives(".abcdef.", &[RemoveReserving(3..5)], ".ab##ef.", "...cd..."),
    gives("ab..AA.cd", &[RemoveReserving(1..8)], "a#######d", ".b..AA.c."),
    gives("..AA..", &[RemoveReserving(0..6)], "######", "..AA.."),
    gives("A.BC..", &[RemoveReserving(1..4)], "A###..", "..BC.."),
    gives("AabcA", &[RemoveReserving(1..4)], "A###A", ".abc."),
    done("abcd", &[RemoveReserving(1..3), Commit(0, Letter('b'))], "a|bc|d"),
    done("abcd", &[RemoveReserving(1..3), RollBack(0)], "a..d"),
    fails("ab..cd", &[RemoveReserving(2..4)], Refused::NotMapped(2..4)),
    fails("ab.##.cd", &[RemoveReserving(0..8)], Refused::Reserved(3..5)),
    fails("01234567", &[RemoveReserving(4..6)], Refused::PartlyCovered(0..8)),
];

const EXCLUDE: &[Case] = &[
    // Whole VMAs.
    gives("ab.BB", &[Exclude(1..4)], "ab.BB", "ab.BB"),
    gives("ab.BB", &[Exclude(0..3)], "ab.BB", "ab..."),
    fails("ab.BB", &[Exclude(1..4), Remove(4..5)], Refused::Excluded(3..5)),
    fails("ab.BB", &[Exclude(1..4), Keep(0..1)], Refused::Excluded(0..2)),
    gives("ab.BB", &[Exclude(0..3), Remove(3..5)], "ab...", "...BB"),
    done("ab.BB", &[Exclude(0..5), Insert(2..3, Letter('A'))], "abABB"),
    gives("abc", &[Exclude(1..2), Release, Remove(0..1)], ".bc", "a.."),
    fails("ab..cd", &[Exclude(2..4)], Refused::NotMapped(2..4)),
    fails("ab.#cd", &[Exclude(1..6)], Refused::Reserved(3..4)),
    fails("ab.#cd", &[Exclude(2..4)], Refused::Reserved(3..4)),
];

const FORK: &[Case] = &[
    copies("......", &[Fork { every_second: false, go_on: false }], "......"),
    copies("ab.##.A|A", &[Fork { every_second: false, go_on: false }], "ab....A|A"),
    copies("ab.##.AB", &[Fork { every_second: true, go_on: false }], "......A."),
    fails("A.(BBCC)", &[Fork { every_second: false, go_on: false }], Refused::Excluded(2..4)),
    // The copy is a space like any other; changes to it do not change the original.
    Case {
        before: "abcd##",
        ops: &[Fork { every_second: false, go_on: true }, Remove(1..3)],
        after: "a..d..",
        comes: Comes::Out(".bc..."),
    },
];

const FIND: &[Case] = &[
    finds("..ab.BB", &[Get(1)], "......."),
    finds("..ab.BB", &[Get(2)], "..ab..."),
    finds("..ab.BB", &[Get(3)], "..ab..."),
    finds("..ab.BB", &[Get(4)], "......."),
    finds("..##.BB", &[Get(2)], "......."),
    finds("..ab.BB", &[ReadFrom(0)], "..ab..."),
    finds("..ab.BB", &[ReadFrom(2)], "..ab..."),
    finds("..ab.BB", &[ReadFrom(3)], "..ab..."),
    finds("..ab.BB", &[ReadFrom(4)], ".....BB"),
    finds("..##.BB", &[ReadFrom(0)], ".....BB"),
    finds("..##.BB", &[ReadFrom(2)], ".....BB"),
    finds("..ab|cd", &[ReadFrom(4)], "....cd"),
];

/// Searches in all columns; with an alignment of less than a granule.
const fn lowest(size: usize, within: Range<usize>) -> Op {
    FindGap(Search { size, align: 1, within, top_down: false })
}

const fn highest(size: usize, within: Range<usize>) -> Op {
    FindGap(Search { size, align: 1, within, top_down: true })
}

const GAP: &[Case] = &[
    gap("ab..cd...", &[lowest(1, 0..9)], 2..3),
    gap("ab..cd...", &[lowest(2, 0..9)], 2..4),
    gap("ab..cd...", &[lowest(3, 0..9)], 6..9),
    no_gap("ab..cd...", &[lowest(4, 0..9)]),
    gap("ab..cd...", &[lowest(2, 3..9)], 6..8),
    gap("ab..cd...", &[lowest(1, 3..9)], 3..4),
    no_gap("ab..cd...", &[lowest(3, 0..8)]),
    gap(".......", &[lowest(7, 0..7)], 0..7),
    gap(".......", &[lowest(2, 3..5)], 3..5),
    no_gap(".......", &[lowest(3, 3..5)]),
    no_gap(".......", &[lowest(1, 3..3)]),
    gap("...ab..cd", &[highest(1, 0..9)], 6..7),
    gap("...ab..cd", &[highest(2, 0..9)], 5..7),
    gap("...ab..cd", &[highest(3, 0..9)], 0..3),
    no_gap("...ab..cd", &[highest(4, 0..9)]),
    gap("...ab..cd", &[highest(2, 0..6)], 1..3),
    gap("...ab..cd", &[highest(1, 0..6)], 5..6),
    no_gap("...ab..cd", &[highest(3, 1..9)]),
    gap(".......", &[highest(7, 0..7)], 0..7),
    gap(".......", &[highest(2, 3..6)], 4..6),
    // A reservation is no gap; an exclusion covers only the VMAs that it holds.
    gap("##.(AA)..", &[lowest(1, 0..7)], 2..3),
    gap("..(AA).##", &[highest(1, 0..7)], 4..5),
    no_gap("##(AA)##|#", &[lowest(1, 0..7)]),
    no_gap("A|A|A|A", &[highest(1, 0..4)]),
    // Removed and rolled back is free again.
    Case {
        before: "abcd",
        ops: &[Remove(1..3), lowest(1, 0..4)],
        after: "a..d",
        comes: Comes::Gap(1..2),
    },
    Case {
        before: "ab##",
        ops: &[RollBack(0), lowest(2, 0..4)],
        after: "ab..",
        comes: Comes::Gap(2..4),
    },
];

const ALL: &[&[Case]] = &[
    INSERT,
    INSERT_MERGING,
    REMOVE,
    REMOVE_WHOLE,
    UPDATE,
    REPLACE,
    SET,
    RELOCATE,
    RESERVE,
    REMOVE_RESERVING,
    EXCLUDE,
    FORK,
    FIND,
    GAP,
];

/// VMAs on each side of the picture: more than a node has entries.
const CROWD: usize = 20;

/// Runs every case everywhere on spaces of `W`; under Miri, which is slow, a few in one place.
pub(crate) fn run<W: World>() {
    let all = ALL.iter().copied().flatten();
    if cfg!(miri) {
        for case in all.step_by(20) {
            case.run::<W>(Place { base: 0, granule: 1 }, 2, true);
        }
        return;
    }
    for case in all {
        for granule in [1, 4096] {
            let top = usize::MAX / granule - columns(case.before);
            for base in [0, 1 << 30, top * granule] {
                for (crowd, shared) in [(0, false), (CROWD, false), (CROWD, true)] {
                    case.run::<W>(Place { base, granule }, crowd, shared);
                }
            }
        }
    }
}

impl Case {
    fn run<W: World>(&self, place: Place, crowd: usize, shared: bool) {
        let world = W::new(place.granule, shared);
        self.run_in(&world, place, crowd);
        world.finish();
        assert_eq!(Part::alive(), 0, "all payloads are dropped");
    }

    fn run_in<W: World>(&self, world: &W, place: Place, crowd: usize) {
        let columns = columns(self.before);
        let mut other = Side::new(world.space(), place.granule);
        let mut side = Side::new(world.space(), place.granule);
        make(&mut other, self.before, place);
        let crowd = beside(place, columns, crowd);
        for range in &crowd {
            side.must(&Insert(range.clone(), Letter('A')));
        }
        make(&mut side, self.before, place);
        side.subject.end();

        let message =
            format!("{} {:?} at {place:x?}, beside {}", self.before, self.ops, crowd.len());
        let (last, first) = self.ops.split_last().unwrap();
        for op in first {
            side.must(&placed(op, place));
        }
        let outcome = side.run(&placed(last, place));
        self.comes.check(outcome, columns, place, &message);
        assert_eq!(look(&mut side, columns, place), plain(self.after), "{message}");

        let window = place.range(&(0..columns));
        let outside = |(range, _): &(Range<usize>, Part)| {
            range.end <= window.start || window.end <= range.start
        };
        let rest: Vec<_> = side.subject.map().into_iter().filter(outside).collect();
        let untouched = crowd.into_iter().map(|range| (range, Part::new('A', place.granule)));
        assert!(rest.into_iter().eq(untouched), "{message}");
        assert_eq!(look(&mut other, columns, place), plain(self.before), "{message}");
    }
}

/// The ranges of `n` VMAs below and `n` above the picture, none of which touches it, as far as
/// there is space.
fn beside(place: Place, columns: usize, n: usize) -> Vec<Range<usize>> {
    let below = (1..=n).rev().filter_map(|n| place.base.checked_sub(2 * n * place.granule));
    let above = (0..n).filter_map(|n| {
        let start = place.base.checked_add((columns + 1 + 2 * n) * place.granule)?;
        (start < usize::MAX - place.granule).then_some(start)
    });
    below.chain(above).map(|start| start..start + place.granule).collect()
}

impl Comes {
    fn check(&self, outcome: Outcome, columns: usize, place: Place, message: &str) {
        let draw = |map: Map| draw(&map, columns, place);
        match (self, outcome) {
            (Self::Out(""), Outcome::Done(map)) => assert_eq!(map, [], "{message}"),
            (Self::Out(expected), Outcome::Done(map)) => {
                assert_eq!(draw(map), *expected, "{message}");
            }
            (Self::Copy(expected), Outcome::Forked(map)) => {
                let window = place.range(&(0..columns));
                let inside = |(range, _): &(Range<usize>, Part)| {
                    window.contains(&range.start) && range.end <= window.end
                };
                let map = map.into_iter().filter(inside).collect();
                assert_eq!(draw(map), *expected, "{message}");
            }
            (Self::Found(expected), Outcome::Found(found)) => {
                assert_eq!(draw(found.into_iter().collect()), *expected, "{message}");
            }
            (Self::Gap(expected), Outcome::Gap(found)) => {
                assert_eq!(found, Ok(place.range(expected)), "{message}");
            }
            (Self::NoGap, Outcome::Gap(found)) => {
                assert_eq!(found, Err(NoGap::NotFound), "{message}");
            }
            (Self::Refused(expected), Outcome::Refused(refused)) => {
                assert_eq!(refused, refused_at(expected, place), "{message}");
            }
            (_, outcome) => panic!("{message}: {outcome:?}"),
        }
    }
}

/// The operation at addresses in place of columns.
fn placed(op: &Op, place: Place) -> Op {
    let range = |columns: &Range<usize>| place.range(columns);
    match op {
        Insert(columns, paint) => Insert(range(columns), *paint),
        InsertMerging(columns, paint) => InsertMerging(range(columns), *paint),
        Remove(columns) => Remove(range(columns)),
        RemoveWhole(columns) => RemoveWhole(range(columns)),
        RemoveReserving(columns) => RemoveReserving(range(columns)),
        Update(columns, paint) => Update(range(columns), *paint),
        Keep(columns) => Keep(range(columns)),
        Change(columns, every) => Change(range(columns), *every),
        Replace(columns, paint) => Replace(range(columns), *paint),
        Set(columns, paint) => Set(range(columns), *paint),
        Relocate(from, to) => Relocate(range(from), place.addr(*to)),
        RelocateAs(from, to, paint) => RelocateAs(range(from), place.addr(*to), *paint),
        Reserve(columns) => Reserve(range(columns)),
        Exclude(columns) => Exclude(range(columns)),
        FindGap(search) => FindGap(Search {
            size: search.size * place.granule,
            within: range(&search.within),
            ..*search
        }),
        Get(column) => Get(place.addr(*column)),
        ReadFrom(column) => ReadFrom(place.addr(*column)),
        Commit(..) | RollBack(_) | Retain(_) | Release | Fork { .. } => op.clone(),
    }
}

fn refused_at(refused: &Refused, place: Place) -> Refused {
    match refused {
        Refused::NotMapped(columns) => Refused::NotMapped(place.range(columns)),
        Refused::Reserved(columns) => Refused::Reserved(place.range(columns)),
        Refused::Excluded(columns) => Refused::Excluded(place.range(columns)),
        Refused::Overlap(columns) => Refused::Overlap(place.range(columns)),
        Refused::PartlyCovered(columns) => Refused::PartlyCovered(place.range(columns)),
        Refused::Overflow(..) | Refused::Empty(_) | Refused::Unaligned(_) => {
            unreachable!("columns are good ranges")
        }
    }
}
