//! What is noted of a client's memory: four words for each thing.

use std::ops::Range;

use super::Extent;

/// A note. Those of a client, one after the other, say what belongs where in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// This belongs there.
    Extent(Extent),
    /// Messages tell what is unmapped.
    TellsUnmaps,
    /// Something has moved from here.
    Left(Range<usize>),
    /// Of the place that was left last, this is not told to be unmapped yet.
    LeftRest(Range<usize>),
    /// Something has moved to here at this time, and displaced what was there.
    Displaced(Range<usize>, Time),
    /// It was this, so many bytes behind the start of the place that was noted last: `start` is
    /// that distance.
    DisplacedPiece(Extent),
    /// Its pages are about to go.
    Remove(Range<usize>),
    /// It was unmapped, which was told at this time.
    Unmap(Range<usize>, Time),
    /// It has moved, which was told at this time.
    Remap { from: usize, to: usize, len: usize, time: Time },
    /// There is a child: a client with this number.
    Fork(u64),
    /// What was missing of it is poisoned.
    Poison(Range<usize>),
    /// All that was missing of it is there.
    Filled(Range<usize>),
}

/// Milliseconds of a clock that never stops; it begins anew after 49 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(u32);

impl Time {
    pub(crate) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // Of either only the lowest bits.
        Self((now.tv_sec as u32).wrapping_mul(1000).wrapping_add(now.tv_nsec as u32 / 1_000_000))
    }

    /// Milliseconds until another time.
    pub(crate) fn until(self, later: Self) -> u32 {
        later.0.wrapping_sub(self.0)
    }
}

#[cfg(test)]
impl Record {
    /// Of any words, as if they were not damaged.
    pub(crate) fn any(kind: u64, about: u32, words: [u64; 3]) -> Option<Self> {
        let [one, two, three] = words;
        let first = kind | u64::from(about) << 32;
        let sum = sum([0, first, one, two, three]) & 0xFF_FFFF;
        Self::of_words([first | sum << 8, one, two, three], 0)
    }
}

#[cfg(test)]
impl Time {
    /// So many milliseconds behind its beginning.
    pub(crate) fn at(milliseconds: u32) -> Self {
        Self(milliseconds)
    }
}

/// Words of a record.
pub(crate) const WORDS: usize = 4;

// The kind of a record, in its first word: 8 bits, under 24 bits of a sum over all others, and 32
// bits that depend on the kind. 0 is none.
const EXTENT: u64 = 1;
const TELLS_UNMAPS: u64 = 2;
const LEFT: u64 = 3;
const LEFT_REST: u64 = 4;
const DISPLACED: u64 = 5;
const DISPLACED_PIECE: u64 = 6;
const REMOVE: u64 = 7;
const UNMAP: u64 = 8;
const REMAP: u64 = 9;
const FORK: u64 = 10;
const POISON: u64 = 11;
const FILLED: u64 = 12;

impl Record {
    /// As words, behind so many other records of the client.
    pub(crate) fn to_words(&self, number: u64) -> [u64; WORDS] {
        let of_range = |range: &Range<usize>| [range.start as u64, range.end as u64, 0];
        let of_extent = |extent: &Extent| {
            let about = extent.page_size.trailing_zeros() << 8 | extent.content;
            (about, [extent.start, extent.len, extent.offset])
        };
        let (kind, (about, words)) = match self {
            Self::Extent(extent) => (EXTENT, of_extent(extent)),
            Self::TellsUnmaps => (TELLS_UNMAPS, (0, [0; 3])),
            Self::Left(range) => (LEFT, (0, of_range(range))),
            Self::LeftRest(range) => (LEFT_REST, (0, of_range(range))),
            Self::Displaced(range, time) => (DISPLACED, (time.0, of_range(range))),
            Self::DisplacedPiece(piece) => (DISPLACED_PIECE, of_extent(piece)),
            Self::Remove(range) => (REMOVE, (0, of_range(range))),
            Self::Unmap(range, time) => (UNMAP, (time.0, of_range(range))),
            Self::Remap { from, to, len, time } => {
                (REMAP, (time.0, [*from as u64, *to as u64, *len as u64]))
            }
            Self::Fork(child) => (FORK, (0, [*child, 0, 0])),
            Self::Poison(range) => (POISON, (0, of_range(range))),
            Self::Filled(range) => (FILLED, (0, of_range(range))),
        };
        let first = kind | u64::from(about) << 32;
        let [one, two, three] = words;
        let sum = sum([number, first, one, two, three]) & 0xFF_FFFF;
        [first | sum << 8, one, two, three]
    }

    /// What words say; `None` if they are damaged.
    pub(crate) fn of_words(words: [u64; WORDS], number: u64) -> Option<Self> {
        let [first, one, two, three] = words;
        let (kind, about) = (first & 0xFF, (first >> 32) as u32);
        let range = || one as usize..two as usize;
        let extent = || {
            let page_size = 1_u32.checked_shl(about >> 8)?;
            Some(Extent { start: one, len: two, offset: three, page_size, content: about & 0xFF })
        };
        let record = match kind {
            EXTENT => Self::Extent(extent()?),
            TELLS_UNMAPS => Self::TellsUnmaps,
            LEFT => Self::Left(range()),
            LEFT_REST => Self::LeftRest(range()),
            DISPLACED => Self::Displaced(range(), Time(about)),
            DISPLACED_PIECE => Self::DisplacedPiece(extent()?),
            REMOVE => Self::Remove(range()),
            UNMAP => Self::Unmap(range(), Time(about)),
            REMAP => Self::Remap {
                from: one as usize,
                to: two as usize,
                len: three as usize,
                time: Time(about),
            },
            FORK => Self::Fork(one),
            POISON => Self::Poison(range()),
            FILLED => Self::Filled(range()),
            _ => return None,
        };
        (record.to_words(number) == words).then_some(record)
    }
}

/// A count, twice, so that it is seen if it is damaged, or was never stored: one word, which is
/// stored at once, with the bits of the count and their contraries.
pub(crate) fn twice(count: usize) -> u64 {
    let count = count as u32;
    u64::from(count) | u64::from(!count) << 32
}

/// The count that is there twice; `None` if it is damaged.
pub(crate) fn once(word: u64) -> Option<usize> {
    (word as u32 == !((word >> 32) as u32)).then_some(word as u32 as usize)
}

/// A sum that differs if a bit does: FNV-1a by words, mixed at the end as by MurmurHash3.
pub(crate) fn sum<const COUNT: usize>(words: [u64; COUNT]) -> u64 {
    let fold = |sum: u64, word: &u64| (sum ^ word).wrapping_mul(0x0000_0100_0000_01B3);
    let sum = words.iter().fold(0xCBF2_9CE4_8422_2325, fold);
    let mix = |sum: u64, factor: u64| (sum ^ sum >> 33).wrapping_mul(factor);
    let mixed = mix(mix(sum, 0xFF51_AFD7_ED55_8CCD), 0xC4CE_B9FE_1A85_EC53);
    mixed ^ mixed >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Record> {
        let (range, time) = (0x1000..0x7FFF_FFFF_F000, Time(u32::MAX));
        let extent = |content| Extent {
            start: 0x20_0000,
            len: 1 << 40,
            offset: 0x3000,
            page_size: 2 << 20,
            content,
        };
        vec![
            Record::Extent(extent(Extent::SOURCE)),
            Record::Extent(Extent { page_size: 4096, ..extent(Extent::POISONED) }),
            Record::TellsUnmaps,
            Record::Left(range.clone()),
            Record::LeftRest(range.clone()),
            Record::Displaced(range.clone(), time),
            Record::DisplacedPiece(extent(Extent::ZEROS)),
            Record::Remove(range.clone()),
            Record::Unmap(range.clone(), time),
            Record::Remap { from: 1 << 46, to: 0x1000, len: usize::MAX, time },
            Record::Fork(u64::MAX),
            Record::Poison(range.clone()),
            Record::Filled(range),
        ]
    }

    #[test]
    fn what_is_noted_is_read_again() {
        for record in all() {
            assert_eq!(Record::of_words(record.to_words(7), 7), Some(record));
        }
        assert_eq!(Record::of_words([0; WORDS], 7), None);
    }

    #[test]
    fn a_damaged_record_is_none() {
        for record in all() {
            let words = record.to_words(7);
            assert_eq!(Record::of_words(words, 8), None, "another one's place: {record:?}");
            for bit in 0..WORDS * 64 {
                let mut damaged = words;
                damaged[bit / 64] ^= 1 << (bit % 64);
                assert_eq!(Record::of_words(damaged, 7), None, "bit {bit} of {record:?}");
            }
        }
    }

    #[test]
    fn time_goes_on_where_the_clock_begins_anew() {
        assert_eq!(Time(u32::MAX - 3).until(Time(6)), 10);
        let now = Time::now();
        assert!(now.until(Time::now()) < 1000);
    }
}
