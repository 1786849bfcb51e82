//! A part of a file as a source: offsets are from its start, and nothing beside it is touched.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use common::{MODES, Mode, PAGE, bytes, child_case, file_with, random_bytes, run_child};
use pervma_pager::{Error, FileSource, OnFailure, Options, ReadFailed, Region, Source};

fn part(file: &File, range: Range<u64>) -> FileSource {
    FileSource::new(file.try_clone().unwrap()).unwrap().part(range).unwrap()
}

fn map(mode: Mode, source: FileSource) -> Region {
    let options = Options::new().writable().granule(4 * PAGE);
    match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    }
    .unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Parts of a file of 20 pages, that begin and end with pages and inside of them.
const PARTS: [Range<usize>; 6] = [
    0..20 * PAGE,
    PAGE..3 * PAGE,
    1..2,
    5 * PAGE - 7..5 * PAGE + 7,
    3 * PAGE + 9..17 * PAGE + 100,
    19 * PAGE + 4095..20 * PAGE,
];

#[test]
fn a_part_is_read_and_written_where_it_is() {
    common::watch();
    for mode in MODES {
        for range in PARTS {
            let mut expected = random_bytes(20 * PAGE, range.start as u64);
            let file = file_with(&expected);
            let region = map(mode, part(&file, range.start as u64..range.end as u64));
            assert_eq!(region.len(), range.len());
            assert!(bytes(&region) == expected[range.clone()], "{mode:?} {range:?}");

            // Behind the part its last page is zeros, and what is written there goes nowhere.
            let memory = region.as_ptr();
            let behind = range.len()..range.len().next_multiple_of(PAGE);
            for at in behind.clone() {
                // SAFETY: within the last page of the region, which no other thread accesses.
                assert_eq!(unsafe { memory.wrapping_add(at).read_volatile() }, 0, "{at}");
                // SAFETY: as above.
                unsafe { memory.wrapping_add(at).write_volatile(9) };
            }
            let new = random_bytes(range.len(), 7);
            region.write(0, &new);
            assert_eq!(region.write_back(0..region.len()).unwrap(), range.len());
            expected[range.clone()].copy_from_slice(&new);
            assert!(content(&file) == expected, "{mode:?} {range:?}: nothing beside it");

            region.discard(0..region.len()).unwrap();
            assert!(bytes(&region) == new, "{mode:?} {range:?}");
            for at in behind {
                // SAFETY: as above.
                assert_eq!(unsafe { memory.wrapping_add(at).read_volatile() }, 0, "{at}");
            }
        }
    }
}

#[test]
fn a_part_of_a_part_is_within_it() {
    common::watch();
    let all = random_bytes(10 * PAGE, 2);
    let file = file_with(&all);
    let outer = part(&file, 100..9 * PAGE as u64);
    let inner = outer.part(50..5000).unwrap();
    assert_eq!(inner.size(), 4950);
    let mut found = vec![0; 4950];
    inner.read_at(0, &mut found).unwrap();
    assert!(found == all[150..5100]);
    assert_eq!(inner.read_at(1, &mut found), Err(ReadFailed), "a byte too many");
    assert!(inner.write_at(1, &found).is_err());
    assert!(inner.read_at(u64::MAX, &mut found).is_err() && inner.zeros(0..5000).is_none());
    assert!(content(&file) == all);
    let beyond = inner.part(0..4951).unwrap_err();
    assert!(matches!(beyond, Error::BeyondFile { start: 0, end: 4951, bytes: 4950 }), "{beyond}");
}

#[test]
fn a_part_that_the_file_does_not_have_is_named() {
    common::watch();
    let file = file_with(&[7; 1000]);
    let source = || FileSource::new(file.try_clone().unwrap()).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "it is refused")]
    for range in [0..1001, 1000..1001, 5..4, u64::MAX..u64::MAX, 0..u64::MAX] {
        let refused = source().part(range.clone()).unwrap_err();
        let named = [range.start, range.end, 1000].map(|number| number.to_string());
        let text = refused.to_string();
        assert!(matches!(refused, Error::BeyondFile { .. }), "{refused}");
        assert!(named.iter().all(|number| text.contains(number)), "{text}");
    }
    assert!(matches!(source().part(10..10), Err(Error::Empty)));
    let last = source().part(999..1000).unwrap();
    file.set_len(2000).unwrap();
    assert_eq!(last.size(), 1, "it does not grow with the file");
    let region = Options::new().map(last).unwrap();
    assert_eq!(bytes(&region), [7]);
}

#[test]
fn a_part_whose_file_becomes_shorter_fails_where_it_is_missing() {
    let name = "a_part_whose_file_becomes_shorter_fails_where_it_is_missing";
    if let Some(case) = child_case() {
        let mode = if case == "Signal" { Mode::Signal } else { Mode::Thread };
        let file = file_with(&random_bytes(20 * PAGE, 3));
        let source = part(&file, 1000..9 * PAGE as u64 + 1000);
        let options = Options::new().writable().on_failure(OnFailure::exit(7, "gone"));
        let region = match mode {
            Mode::Signal => options.map(source),
            Mode::Thread => options.handler_threads(1).map(source),
        }
        .unwrap();
        region.write(8 * PAGE, &[1]);
        file.set_len(5 * PAGE as u64 + 1000).unwrap();
        assert!(region.write_back(0..region.len()).is_err(), "it does not become longer again");
        assert_eq!(file.metadata().unwrap().len(), 5 * PAGE as u64 + 1000);
        let mut page = [0; PAGE];
        region.read(4 * PAGE, &mut page);
        region.read(5 * PAGE, &mut page);
        unreachable!("it is not there");
    }
    for mode in MODES {
        let ended = run_child(name, &format!("{mode:?}"));
        assert_eq!((ended.exit, ended.signal), (Some(7), None), "{ended:?}");
    }
    let file = file_with(&[7; 100]);
    let source = part(&file, 50..90);
    file.set_len(60).unwrap();
    assert_eq!(source.size(), 10);
    file.set_len(40).unwrap();
    assert_eq!(source.size(), 0);
    assert!(matches!(Options::new().map(source), Err(Error::Empty)));
}
