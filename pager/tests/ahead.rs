//! Pages that are filled before they are touched.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "threads of the test tell each other when to end")]

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{MODES, Mode, PAGE, byte, bytes, file_with, pages_in_memory, random_bytes, regions};
use pervma_pager::sys::Access;
use pervma_pager::{Error, FileSource, Options, ReadFailed, Refusal, Region, SignalSafe, Source};

fn map<S: SignalSafe + 'static>(mode: Mode, options: Options, source: S) -> Region {
    match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    }
    .unwrap()
}

/// Which of the region's pages the kernel says are there.
fn present(region: &Region, range: Range<usize>) -> usize {
    let mut pages = vec![0_u8; range.len().div_ceil(PAGE)];
    let start = region.as_ptr().wrapping_add(range.start).cast();
    // SAFETY: asks about the region's memory, and writes a byte for each page of it.
    let asked = unsafe { libc::mincore(start, range.len(), pages.as_mut_ptr()) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&page| page & 1 != 0).count()
}

#[test]
fn what_is_missing_comes() {
    common::watch();
    let original = random_bytes(40 * PAGE - 9, 1);
    for mode in MODES {
        for set in [|options: Options| options, |options: Options| options.writable()] {
            for region in regions(&original, mode, set) {
                assert_eq!(byte(&region, 3 * PAGE), original[3 * PAGE]);
                let some = region.prefetch(2 * PAGE..10 * PAGE).unwrap();
                assert_eq!((some.bytes, some.end), (7 * PAGE, 10 * PAGE), "{mode:?}");
                assert_eq!(pages_in_memory(&region), 8);
                let all = region.prefetch(0..region.len()).unwrap();
                assert_eq!((all.bytes, all.end), (32 * PAGE, region.len()));
                assert_eq!(pages_in_memory(&region), 40);
                assert_eq!(region.prefetch(0..region.len()).unwrap().bytes, 0);
                assert!(bytes(&region) == original);
                assert!(region.written(0..region.len()).unwrap().is_empty());
            }
        }
        // Neighbours come with it, as they do for an access.
        for region in regions(&original, mode, |options| options.granule(16 * PAGE)) {
            let some = region.prefetch(15 * PAGE..17 * PAGE).unwrap();
            assert_eq!((some.bytes, some.end), (32 * PAGE, 17 * PAGE), "{mode:?}");
            assert!(bytes(&region) == original);
        }
    }
}

#[test]
fn what_cannot_come_is_an_error() {
    common::watch();
    for mode in MODES {
        let bytes = random_bytes(20 * PAGE, 2);
        let file = file_with(&bytes);
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let region = map(mode, Options::new().granule(2 * PAGE), source);
        let refused = |range: Range<usize>| match region.prefetch(range).unwrap_err() {
            Error::Access(error) => (error.offset() / PAGE, error.done() / PAGE, error.refusal()),
            error => panic!("{error}"),
        };
        region.unmap(6 * PAGE..7 * PAGE).unwrap();
        region.protect(12 * PAGE..13 * PAGE, Access::None).unwrap();
        file.set_len(16 * PAGE as u64).unwrap();
        assert_eq!(refused(PAGE..20 * PAGE), (6, 6, Refusal::NotMapped));
        assert_eq!(refused(7 * PAGE..20 * PAGE), (12, 5, Refusal::Protected));
        assert_eq!(refused(13 * PAGE..20 * PAGE), (16, 3, Refusal::Unavailable));
        assert_eq!(present(&region, 0..16 * PAGE), 14, "what came stays");
        assert!(matches!(region.prefetch(1..PAGE), Err(Error::Range { .. })));
        assert!(matches!(region.prefetch(0..21 * PAGE), Err(Error::Range { .. })));
    }
}

#[test]
fn it_stops_at_the_bound_and_what_came_is_there() {
    common::watch();
    let original = random_bytes(100 * PAGE, 3);
    for mode in MODES {
        for granule in [1, 4] {
            for is_writable in [false, true] {
                let options = Options::new().granule(granule * PAGE).resident(32 * PAGE);
                let options = if is_writable { options.writable() } else { options };
                let source = FileSource::new(file_with(&original)).unwrap();
                let region = map(mode, options, source);
                let mut expected = original.clone();
                for turn in 0..6 {
                    // The bound is full of others, written ones too.
                    for page in 40..100 {
                        if is_writable && turn > 2 {
                            expected[page * PAGE] = turn;
                            region.write(page * PAGE, &[turn]);
                        }
                        assert_eq!(byte(&region, page * PAGE), expected[page * PAGE]);
                    }
                    region.discard(0..40 * PAGE).unwrap();
                    let came = region.prefetch(0..region.len()).unwrap();
                    let what = format!("{mode:?} {granule} {is_writable} {turn}");
                    assert_eq!((came.bytes, came.end), (24 * PAGE, 24 * PAGE), "{what}");
                    assert_eq!(present(&region, 0..24 * PAGE), 24, "{what}");
                }
                assert!(bytes(&region) == expected);
                let most = region.most_resident().unwrap();
                assert!(most <= 32 * PAGE, "{most}");
            }
        }
    }
}

/// Its pages cannot be written back.
struct Full;

impl Source for Full {
    fn size(&self) -> u64 {
        64 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        buf.fill((offset / PAGE as u64) as u8);
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::StorageFull.into())
    }
}

// SAFETY: it only writes to the buffer it is given.
unsafe impl SignalSafe for Full {}

#[test]
fn what_cannot_go_leaves_less() {
    common::watch();
    for mode in MODES {
        let region = map(mode, Options::new().writable().resident(16 * PAGE), Full);
        region.write(40 * PAGE, &[9; 9 * PAGE]);
        let came = region.prefetch(0..region.len()).unwrap();
        assert_eq!((came.bytes, came.end), (7 * PAGE, 7 * PAGE), "{mode:?}");
        assert_eq!(present(&region, 0..7 * PAGE), 7);
        assert_eq!(byte(&region, 48 * PAGE), 9);
    }
}

#[test]
fn it_goes_on_beside_changes() {
    common::watch();
    let original = &random_bytes(64 * PAGE, 4);
    for mode in MODES {
        let options = Options::new().writable().granule(4 * PAGE).resident(24 * PAGE);
        let source = FileSource::new(file_with(original)).unwrap();
        let region = &map(mode, options, source);
        let is_over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                scope.spawn(move || {
                    for turn in 0.. {
                        if is_over.load(Relaxed) {
                            break;
                        }
                        let start = (turn * 7 + thread) % 40;
                        let range = start * PAGE..(start + 24) * PAGE;
                        match region.prefetch(range) {
                            Ok(came) => assert!(came.end >= start * PAGE),
                            Err(Error::Access(error)) => {
                                assert_eq!(error.refusal(), Refusal::NotMapped, "{error}");
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            let changing = scope.spawn(move || {
                for turn in 0..1000 {
                    let page = turn * 11 % 60;
                    let range = page * PAGE..(page + 3) * PAGE;
                    match turn % 3 {
                        0 => region.discard(range).unwrap(),
                        1 => {
                            region.unmap(range.clone()).unwrap();
                            region.map(range).unwrap();
                        }
                        _ => {
                            assert_eq!(byte(region, page * PAGE), original[page * PAGE]);
                            region.write(page * PAGE, &original[page * PAGE..][..9]);
                        }
                    }
                }
            });
            let changed = changing.join();
            is_over.store(true, Relaxed);
            changed.unwrap();
        });
        assert!(bytes(region) == *original);
        let most = region.most_resident().unwrap();
        assert!(most <= 24 * PAGE, "{most}");
        // Nothing is held any more.
        let came = region.prefetch(0..region.len()).unwrap();
        assert!(came.end >= 16 * PAGE, "{came:?}");
    }
}
