//! Regions hold their source's bytes, whichever thread touches them, and give everything back.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::mpsc;

use common::{PAGE, random_bytes};
use pervma_pager::{
    Error, FileSource, FrozenRegion, MemorySource, Options, ReadFailed, SignalSafe, Source,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

const SIZES: [usize; 7] = [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 100 * PAGE, 777 * PAGE + 123];

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    // Reading by position does not care; make that visible.
    file.seek(SeekFrom::End(0)).unwrap();
    file
}

/// Both kinds of source with these bytes.
fn regions(bytes: &[u8]) -> [FrozenRegion; 2] {
    [
        FrozenRegion::map(MemorySource::new(bytes)).unwrap(),
        FrozenRegion::map(FileSource::new(file_with(bytes)).unwrap()).unwrap(),
    ]
}

/// Touches all pages in random order.
fn check_all_pages(region: &[u8], expected: &[u8], seed: u64) {
    let mut pages: Vec<_> = region.chunks(PAGE).zip(expected.chunks(PAGE)).collect();
    pages.shuffle(&mut StdRng::seed_from_u64(seed));
    for (page, expected) in pages {
        assert!(page == expected);
    }
}

#[test]
fn every_size_reads_as_the_source() {
    common::watch();
    for size in SIZES {
        let bytes = random_bytes(size, size as u64);
        for region in regions(&bytes) {
            assert_eq!(region.len(), size);
            check_all_pages(&region, &bytes, 1);
        }
    }
}

#[test]
fn several_threads_touch_the_same_pages() {
    common::watch();
    let bytes = random_bytes(500 * PAGE + 7, 1);
    for region in regions(&bytes) {
        std::thread::scope(|threads| {
            for seed in 0..6 {
                let (region, bytes) = (&region, &bytes);
                threads.spawn(move || check_all_pages(region, bytes, seed));
            }
        });
    }
}

#[test]
fn memory_behind_the_last_byte_is_zero() {
    common::watch();
    for granule in [PAGE, 16 * PAGE, 512 * PAGE] {
        let options = Options::new().granule(granule);
        let bytes = random_bytes(2 * granule + PAGE + 1, 2);
        let live = [
            options.clone().map(MemorySource::new(bytes.as_slice())),
            options.clone().map(FileSource::new(file_with(&bytes)).unwrap()),
            options.handler_threads(1).map(FileSource::new(file_with(&bytes)).unwrap()),
        ];
        for live in live {
            let region = live.unwrap().freeze().unwrap();
            // What is read first is in the buffer that the end is read to.
            assert_eq!((region[0], region[granule]), (bytes[0], bytes[granule]));
            let last = &region[bytes.len() - 1];
            // SAFETY: the region's memory is whole pages.
            let rest = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(last), PAGE) };
            assert_eq!(rest[0], bytes[bytes.len() - 1]);
            assert!(rest[1..].iter().all(|&byte| byte == 0), "{granule}");
        }
    }
}

#[test]
fn regions_come_and_go_while_others_are_read() {
    common::watch();
    let bytes = random_bytes(2000 * PAGE, 3);
    let [memory, file] = regions(&bytes);
    let (done, stop) = mpsc::channel::<()>();
    std::thread::scope(|threads| {
        let other = &bytes[..20 * PAGE];
        threads.spawn(move || {
            while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
                for region in regions(other) {
                    check_all_pages(&region, other, 4);
                }
            }
        });
        let readers = [&memory, &file].map(|region| {
            let bytes = &bytes;
            threads.spawn(move || check_all_pages(region, bytes, 5))
        });
        for reader in readers {
            reader.join().unwrap();
        }
        drop(done);
    });
}

#[test]
fn a_region_can_be_dropped_by_another_thread_and_unread() {
    common::watch();
    let bytes = random_bytes(10 * PAGE, 6);
    for region in regions(&bytes) {
        assert_eq!(region[5 * PAGE], bytes[5 * PAGE]);
        std::thread::spawn(move || drop(region)).join().unwrap();
    }
}

/// Says so when it is dropped.
struct Told(Option<mpsc::Sender<std::thread::ThreadId>>);

// SAFETY: writes to the buffer it is given.
unsafe impl SignalSafe for Told {}

impl Source for Told {
    fn size(&self) -> u64 {
        PAGE as u64
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        buf.fill(9);
        Ok(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.take().unwrap().send(std::thread::current().id()).unwrap();
    }
}

#[test]
fn the_source_is_dropped_with_the_region_on_the_dropping_thread() {
    common::watch();
    let (told, dropped) = mpsc::channel();
    let region = FrozenRegion::map(Told(Some(told))).unwrap();
    assert_eq!(region[0], 9);
    assert!(dropped.try_recv().is_err());
    drop(region);
    assert_eq!(dropped.try_recv(), Ok(std::thread::current().id()));
}

#[test]
fn one_source_can_serve_several_regions() {
    common::watch();
    let bytes = random_bytes(3 * PAGE, 7);
    let source = Arc::new(FileSource::new(file_with(&bytes)).unwrap());
    let regions = [(); 3].map(|()| FrozenRegion::map(Arc::clone(&source)).unwrap());
    for region in &regions {
        assert!(region[..] == bytes);
    }
}

#[test]
fn what_was_read_stays_when_the_file_changes() {
    common::watch();
    let mut file = file_with(&[1; 2 * PAGE]);
    let region = FrozenRegion::map(FileSource::new(file.try_clone().unwrap()).unwrap()).unwrap();
    assert_eq!(region[0], 1);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&[2; 2 * PAGE]).unwrap();
    assert_eq!((region[0], region[PAGE]), (1, 2));
}

#[test]
fn system_calls_get_efault_until_the_page_is_filled() {
    common::watch();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let bytes = random_bytes(PAGE, 8);
    for region in regions(&bytes) {
        assert_eq!(rustix::io::write(&write, &region), Err(rustix::io::Errno::FAULT));
        assert_eq!(region[0], bytes[0]);
        assert_eq!(rustix::io::write(&write, &region), Ok(PAGE));
        let mut back = [0; PAGE];
        assert_eq!(rustix::io::read(&read, &mut back), Ok(PAGE));
        assert!(back[..] == bytes);
    }
}

/// A source that spoils `errno`.
struct Careless;

// SAFETY: one system call, and writes to the buffer it is given.
unsafe impl SignalSafe for Careless {}

impl Source for Careless {
    fn size(&self) -> u64 {
        PAGE as u64
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        // SAFETY: closes nothing, there is no such descriptor.
        assert_eq!(unsafe { libc::close(-1) }, -1);
        buf.fill(3);
        Ok(())
    }
}

#[test]
fn errno_is_preserved_by_a_fault() {
    common::watch();
    let region = FrozenRegion::map(Careless).unwrap();
    // SAFETY: no condition; the C library has one for each thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: this thread's own.
    unsafe { errno.write(123) };
    let byte = std::hint::black_box(region[0]);
    // SAFETY: this thread's own.
    assert_eq!((byte, unsafe { errno.read() }), (3, 123));
}

/// A source of a size that nothing can hold.
struct Huge(u64);

// SAFETY: touches nothing.
unsafe impl SignalSafe for Huge {}

impl Source for Huge {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        Err(ReadFailed)
    }
}

#[test]
fn empty_and_impossible_sources_are_errors() {
    common::watch();
    assert!(matches!(FrozenRegion::map(MemorySource::new(vec![])), Err(Error::Empty)));
    let empty = FileSource::new(tempfile::tempfile().unwrap()).unwrap();
    assert!(matches!(FrozenRegion::map(empty), Err(Error::Empty)));
    assert!(matches!(FrozenRegion::map(Huge(u64::MAX)), Err(Error::TooLarge { .. })));
    assert!(matches!(FrozenRegion::map(Huge(1 << 60)), Err(Error::TooLarge { .. })));
}

#[test]
fn a_region_can_be_sent_and_shared_and_shown_unread() {
    common::watch();
    fn sent_and_shared<T: Send + Sync>() {}
    sent_and_shared::<FrozenRegion>();
    let region = FrozenRegion::map(Huge(5)).unwrap();
    assert!(format!("{region:?}").ends_with("len: 5 })"));
}
