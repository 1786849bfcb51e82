//! What a source says is zeros takes no memory, and is not read.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use common::{MODES, Mode, PAGE, byte, bytes, random_bytes};
use pervma_pager::{FileSource, Options, ReadFailed, Region, SignalSafe, Source};

const GRANULES: [usize; 3] = [PAGE, 16 * PAGE, 512 * PAGE];

fn map<S: SignalSafe + 'static>(mode: Mode, options: Options, source: S) -> Region {
    match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(2).map(source),
    }
    .unwrap()
}

/// Bytes of memory that a region takes, as the kernel counts them: not those of its page of zeros.
fn memory_of(region: &Region) -> usize {
    let start = region.as_ptr().addr();
    let within = start..start + region.capacity();
    let mut inside = false;
    let mut kib = 0;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some((from, _)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')) {
            inside = usize::from_str_radix(from, 16).is_ok_and(|from| within.contains(&from));
        } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| inside) {
            kib += rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
        }
    }
    kib << 10
}

/// A file of so many bytes with holes: there is data in these pages. `None` if the file system has
/// no holes.
fn sparse(len: usize, data: &[usize]) -> Option<(File, Vec<u8>)> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len as u64).unwrap();
    let mut expected = vec![0; len];
    for &page in data {
        let at = page * PAGE;
        let page = &mut expected[at..(at + PAGE).min(len)];
        page.copy_from_slice(&random_bytes(page.len(), at as u64));
        file.write_all_at(page, at as u64).unwrap();
    }
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
    if hole == len as u64 {
        common::not_run("the file system of temporary files has no holes");
        return None;
    }
    Some((file, expected))
}

#[test]
fn holes_of_a_file_take_no_memory() {
    common::watch();
    const LEN: usize = (48 << 20) + 77;
    let data = [0, 700, 701, 5000, LEN / PAGE];
    let Some((file, expected)) = sparse(LEN, &data) else { return };
    for mode in MODES {
        for granule in GRANULES {
            for fd in [&file, &tempfile_in_memory(&expected, &data)] {
                let source = FileSource::new(fd.try_clone().unwrap()).unwrap();
                let region = map(mode, Options::new().granule(granule), source);
                assert!(bytes(&region) == expected, "{mode:?} {granule}");
                let (memory, most) = (memory_of(&region), data.len() * (64 << 10));
                assert!(memory >= data.len() * PAGE, "{mode:?} {granule}: {memory}");
                assert!(memory <= most, "{mode:?} {granule}: {memory}");
                region.discard(0..region.len()).unwrap();
                assert_eq!(byte(&region, 701 * PAGE), expected[701 * PAGE]);
                assert_eq!(byte(&region, 9000 * PAGE), 0);
            }
        }
    }
}

/// The same in memory, whose files have holes too.
fn tempfile_in_memory(expected: &[u8], data: &[usize]) -> File {
    let fd = rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(expected.len() as u64).unwrap();
    for &page in data {
        let at = page * PAGE;
        let end = (at + PAGE).min(expected.len());
        file.write_all_at(&expected[at..end], at as u64).unwrap();
    }
    file
}

/// Its holes are where the file has them, whether the part begins with a page of it or not.
#[test]
fn holes_of_a_part_of_a_file_take_no_memory() {
    common::watch();
    let data = [0, 40, 41, 70, 99];
    let Some((file, expected)) = sparse(100 * PAGE, &data) else { return };
    for mode in MODES {
        for range in [0..100 * PAGE, 10 * PAGE..90 * PAGE, 20 * PAGE + 5..70 * PAGE + 77] {
            let (start, end) = (range.start as u64, range.end as u64);
            let source = FileSource::new(file.try_clone().unwrap()).unwrap();
            let source = source.part(start..end).unwrap();
            let region = map(mode, Options::new().granule(16 * PAGE), source);
            assert!(bytes(&region) == expected[range.clone()], "{mode:?} {range:?}");
            // Data of one page can lie in two, and what is at a seam is read with it.
            let memory = memory_of(&region);
            assert!(memory > 0 && memory <= 2 * data.len() * PAGE, "{range:?}: {memory}");
        }
    }
}

#[test]
fn what_is_written_to_a_hole_later_is_read() {
    common::watch();
    let Some((file, _)) = sparse(64 * PAGE, &[0]) else { return };
    for mode in MODES {
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let region = map(mode, Options::new().granule(16 * PAGE), source);
        assert_eq!(byte(&region, 20 * PAGE), 0);
        file.write_all_at(&[9; PAGE], 20 * PAGE as u64).unwrap();
        assert_eq!(byte(&region, 20 * PAGE), 0, "it is present");
        region.discard(16 * PAGE..32 * PAGE).unwrap();
        assert_eq!((byte(&region, 20 * PAGE), byte(&region, 21 * PAGE)), (9, 0));
        file.set_len(20 * PAGE as u64).unwrap();
        file.set_len(64 * PAGE as u64).unwrap();
    }
}

#[test]
fn a_region_that_is_written_has_pages_of_its_own() {
    common::watch();
    let Some((file, mut expected)) = sparse(64 * PAGE, &[3]) else { return };
    for mode in MODES {
        for granule in [PAGE, 16 * PAGE] {
            let source = FileSource::new(file.try_clone().unwrap()).unwrap();
            let region = map(mode, Options::new().granule(granule).writable(), source);
            assert_eq!(byte(&region, 20 * PAGE), expected[20 * PAGE]);
            region.write(20 * PAGE, &[7]);
            expected[20 * PAGE] = 7;
            let written = region.written(0..region.len()).unwrap();
            assert_eq!(written.as_slice(), std::slice::from_ref(&(20 * PAGE..21 * PAGE)));
            region.write_back(0..region.len()).unwrap();
            region.discard(0..region.len()).unwrap();
            assert!(bytes(&region) == expected);
        }
    }
}

#[test]
fn the_position_of_a_file_stays() {
    common::watch();
    let Some((mut file, expected)) = sparse(64 * PAGE, &[3]) else { return };
    file.seek(SeekFrom::Start(12_345)).unwrap();
    let region =
        map(Mode::Signal, Options::new(), FileSource::new(file.try_clone().unwrap()).unwrap());
    assert!(bytes(&region) == expected);
    assert_eq!(file.stream_position().unwrap(), 12_345, "the descriptors share it");
}

/// Says that these bytes are zeros, and fails if it is asked for them.
struct Known {
    zeros: Vec<Range<u64>>,
    asked: Mutex<Vec<Range<u64>>>,
}

impl Source for Known {
    fn size(&self) -> u64 {
        64 * PAGE as u64 - 100
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        for (at, byte) in (offset..).zip(&mut *buf) {
            *byte = u8::from(!self.zeros.iter().any(|zeros| zeros.contains(&at)));
        }
        self.asked.lock().unwrap().push(offset..offset + buf.len() as u64);
        Ok(())
    }

    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        let found = self.zeros.iter().find(|zeros| zeros.end > range.start)?;
        // Also what lies outside.
        (found.start < range.end).then(|| found.clone())
    }
}

// SAFETY: the lock is taken here and by a test that does not touch the region meanwhile; the list
// has room.
unsafe impl SignalSafe for Known {}

#[test]
fn zeros_that_are_no_whole_pages_are_read() {
    common::watch();
    const P: u64 = PAGE as u64;
    let zeros = vec![
        10..P - 10,
        2 * P..3 * P,
        4 * P + 1..7 * P - 1,
        14 * P..18 * P,
        31 * P + 1..32 * P,
        62 * P..64 * P - 100,
    ];
    for mode in MODES {
        for granule in [PAGE, 16 * PAGE, 64 * PAGE] {
            let asked = Mutex::new(Vec::with_capacity(1000));
            let source = Arc::new(Known { zeros: zeros.clone(), asked });
            let region = map(mode, Options::new().granule(granule), Arc::clone(&source));
            for (at, byte) in (0..).zip(bytes(&region)) {
                let is_zero = zeros.iter().any(|zeros| zeros.contains(&at));
                assert_eq!(byte, u8::from(!is_zero), "{mode:?} {granule} {at}");
            }
            let asked = source.asked.lock().unwrap();
            for whole in [2 * P..3 * P, 5 * P..6 * P, 14 * P..18 * P, 62 * P..64 * P] {
                let overlaps =
                    |asked: &Range<u64>| asked.start < whole.end && whole.start < asked.end;
                assert!(!asked.iter().any(overlaps), "{mode:?} {granule} {whole:?}: {asked:?}");
            }
        }
    }
}
