//! Granules of which the kernel has several mappings: what the region has gone through, or what the
//! application has asked for parts of it, divides them. Every page is still filled, by one fault.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ops::Range;

use common::{Ask, MODES, Mode, PAGE, byte, bytes, pages_in_memory, random_bytes, regions};
use pervma_pager::sys::Access;
use pervma_pager::{MemorySource, Options, Region};

/// Pages of the granule that this test divides.
const SMALL: usize = 16;
const LARGE: usize = 512;

/// Makes the kernel keep some pages of a region in a mapping of their own.
#[derive(Clone, Copy, Debug)]
enum Divide {
    /// Closed while pages around them are touched, and opened again.
    Protected,
    /// Unmapped while pages around them are touched, and mapped again.
    Unmapped,
    Asked(Ask),
}

const DIVIDES: [Divide; 7] = [
    Divide::Protected,
    Divide::Unmapped,
    Divide::Asked(Ask::Advice(libc::MADV_DONTDUMP)),
    Divide::Asked(Ask::Advice(libc::MADV_NOHUGEPAGE)),
    Divide::Asked(Ask::Lock),
    Divide::Asked(Ask::Bind),
    Divide::Asked(Ask::Name),
];

impl Divide {
    fn divide(self, region: &Region, pages: &Range<usize>) {
        let part = pages.start * PAGE..(pages.end * PAGE).min(region.len());
        let touch_around = || {
            byte(region, 0);
            byte(region, region.len() - 1);
        };
        match self {
            Self::Protected => {
                region.protect(part.clone(), Access::None).unwrap();
                touch_around();
                let access = if is_writable(region) { Access::ReadWrite } else { Access::Read };
                region.protect(part, access).unwrap();
            }
            Self::Unmapped => {
                region.unmap(part.clone()).unwrap();
                touch_around();
                region.map(part).unwrap();
            }
            // Not every kernel has names, and locking fails if it cannot fill.
            Self::Asked(ask) => {
                let done = ask.ask(region, pages);
                assert!(done || matches!(ask, Ask::Lock | Ask::Name), "{ask:?}");
            }
        }
    }
}

fn is_writable(region: &Region) -> bool {
    // Only such a region lets writes through.
    region.protect(0..PAGE, Access::ReadWrite).is_ok()
}

/// Regions of so many pages that one fault fills, of each source, in a mode, read-only or writable.
fn one_granule(expected: &[u8], mode: Mode, pages: usize, writable: bool) -> [Region; 2] {
    match (pages, writable) {
        (SMALL, false) => regions(expected, mode, |options| options.granule(SMALL * PAGE)),
        (SMALL, true) => {
            regions(expected, mode, |options| options.granule(SMALL * PAGE).writable())
        }
        (_, false) => regions(expected, mode, |options| options.granule(LARGE * PAGE)),
        (_, true) => regions(expected, mode, |options| options.granule(LARGE * PAGE).writable()),
    }
}

/// What is divided: one part in the middle, its ends off the powers of two, or every second page.
fn parts(pages: usize) -> [Vec<Range<usize>>; 2] {
    let middle = pages / 4 - 1..pages / 2 + pages / 8 - 1;
    let alternate = (1..pages - 1).step_by(2).take(20).map(|page| page..page + 1);
    [vec![middle], alternate.collect()]
}

#[test]
fn a_granule_in_several_mappings_is_filled_by_one_fault() {
    common::watch();
    for pages in [SMALL, LARGE] {
        let expected = random_bytes(pages * PAGE - 9, pages as u64);
        for mode in MODES {
            for writable in [false, true] {
                for divide in DIVIDES {
                    for parts in parts(pages) {
                        for region in one_granule(&expected, mode, pages, writable) {
                            for part in &parts {
                                divide.divide(&region, part);
                            }
                            region.discard(0..region.len()).unwrap();
                            let at = parts[0].start * PAGE + 7;
                            let what = format!("{mode:?} {writable} {divide:?} {parts:?}");
                            assert_eq!(byte(&region, at), expected[at], "{what}");
                            assert_eq!(pages_in_memory(&region), pages, "{what}");
                            assert!(bytes(&region) == expected, "{what}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_written_page_beside_a_seam_is_kept_and_written_back() {
    common::watch();
    for mode in MODES {
        for divide in DIVIDES {
            let mut expected = random_bytes(SMALL * PAGE, 3);
            let [_, region] = one_granule(&expected, mode, SMALL, true);
            divide.divide(&region, &(3..6));
            region.discard(0..region.len()).unwrap();
            for at in [2 * PAGE, 3 * PAGE, 5 * PAGE + 1, 6 * PAGE] {
                region.write(at, &[77]);
                expected[at] = 77;
            }
            let written = region.written(0..region.len()).unwrap();
            assert_eq!(written, [2 * PAGE..4 * PAGE, 5 * PAGE..7 * PAGE], "{divide:?}");
            assert_eq!(region.write_back(0..region.len()).unwrap(), 4 * PAGE);
            region.discard(0..region.len()).unwrap();
            assert!(bytes(&region) == expected, "{mode:?} {divide:?}");
        }
    }
}

/// A page of the granule that is no memory of the region's any more keeps no other from coming.
#[test]
fn a_page_that_the_application_took_away_is_missed_by_nobody_else() {
    common::watch();
    for mode in MODES {
        for closed in [true, false] {
            let expected = random_bytes(SMALL * PAGE, 4);
            for region in one_granule(&expected, mode, SMALL, false) {
                let start = region.as_ptr().wrapping_add(4 * PAGE).cast();
                if closed {
                    // SAFETY: no thread accesses these pages.
                    let done = unsafe { libc::mprotect(start, 2 * PAGE, libc::PROT_NONE) };
                    assert_eq!(done, 0);
                } else {
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                    // SAFETY: as above; the region unmaps what is there in the end.
                    let own = unsafe { libc::mmap(start, 2 * PAGE, libc::PROT_READ, flags, -1, 0) };
                    assert_eq!(own, start);
                }
                for page in (0..4).chain(6..SMALL) {
                    let at = page * PAGE + page;
                    assert_eq!(byte(&region, at), expected[at], "{mode:?} {closed} {page}");
                }
            }
        }
    }
}

#[test]
fn a_bound_counts_what_came_in_parts() {
    common::watch();
    for mode in MODES {
        let expected = random_bytes(40 * SMALL * PAGE, 5);
        for region in regions(&expected, mode, |options| {
            options.granule(SMALL * PAGE).resident(4 * SMALL * PAGE)
        }) {
            for granule in 0..40 {
                Divide::Asked(Ask::Advice(libc::MADV_DONTDUMP))
                    .divide(&region, &(granule * SMALL + 3..granule * SMALL + 6));
            }
            for _ in 0..2 {
                assert!(bytes(&region) == expected);
            }
            assert!(region.most_resident().unwrap() <= 4 * SMALL * PAGE);
            region.discard(0..region.len()).unwrap();
            assert_eq!(region.resident(), Some(0), "what is counted is what is there");
        }
    }
}

/// Huge pages are mapped in several parts as well.
#[test]
fn a_granule_of_huge_pages_in_several_mappings_is_filled() {
    common::watch();
    const HUGE: usize = 2 << 20;
    let Some(_pages) = common::huge_pages(6) else { return };
    let expected = random_bytes(4 * HUGE, 6);
    for mode in MODES {
        let options = Options::new().huge_pages().granule(4 * HUGE);
        let source = MemorySource::new(&expected[..]);
        let region = match mode {
            Mode::Signal => options.map(source).unwrap(),
            Mode::Thread => options.handler_threads(1).map(source).unwrap(),
        };
        Divide::Asked(Ask::Advice(libc::MADV_DONTDUMP)).divide(&region, &(LARGE..2 * LARGE));
        region.protect(2 * HUGE..3 * HUGE, Access::None).unwrap();
        byte(&region, 0);
        region.protect(2 * HUGE..3 * HUGE, Access::Read).unwrap();
        region.discard(0..4 * HUGE).unwrap();
        assert_eq!(byte(&region, 3 * HUGE + 5), expected[3 * HUGE + 5]);
        assert_eq!(pages_in_memory(&region), 4 * LARGE, "{mode:?}");
        assert!(bytes(&region) == expected);
    }
}
