//! Pages that the kernel holds for a device (direct I/O, registered buffers) while they are to be
//! given back or written to the source: what the device writes is neither lost nor called clean.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "words that the kernel shares, and the end of a test")]

mod common;

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{MODES, Mode, PAGE, byte, bytes, child_case, file_with, random_bytes, run_child};
use pervma_pager::sys::Access;
use pervma_pager::{FileSource, OnFailure, Options, Region};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A buffer that the kernel holds for as long as this lives, and can read a file into: with
/// io_uring, as a device would.
struct Held {
    ring: OwnedFd,
    params: Params,
    /// The mapped rings, and the entries of what is submitted.
    rings: *mut u8,
    entries: *mut u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq: SqOffsets,
    cq: CqOffsets,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv1: u32,
    user_addr: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    resv1: u32,
    user_addr: u64,
}

const RINGS: usize = 4 * PAGE;
const IORING_REGISTER_BUFFERS: u32 = 0;
const IORING_UNREGISTER_BUFFERS: u32 = 1;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OP_READ_FIXED: u8 = 4;
const IORING_OFF_SQES: libc::off_t = 0x1000_0000;

impl Held {
    /// Writes to each page of a part of a region, and holds them. `None` where the kernel has no
    /// io_uring, or does not let it be used.
    fn new(region: &Region, part: &Range<usize>) -> Option<Self> {
        let mut params = Params::default();
        // SAFETY: the kernel fills in the parameters.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, &raw mut params) };
        if ring < 0 {
            common::not_run(format_args!("no io_uring: {}", std::io::Error::last_os_error()));
            return None;
        }
        // SAFETY: it is new, and has no other owner.
        let ring = unsafe { OwnedFd::from_raw_fd(ring as i32) };
        let map = |offset| {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            // SAFETY: maps to addresses that the kernel chooses.
            let start = unsafe {
                libc::mmap(ptr::null_mut(), RINGS, access, flags, ring.as_raw_fd(), offset)
            };
            assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            start.cast::<u8>()
        };
        let (rings, entries) = (map(0), map(IORING_OFF_SQES));
        let buffer = libc::iovec {
            iov_base: region.as_ptr().wrapping_add(part.start).cast(),
            iov_len: part.len(),
        };
        let (call, fd) = (libc::SYS_io_uring_register, ring.as_raw_fd());
        loop {
            for page in part.clone().step_by(PAGE) {
                region.write(page, &[byte(region, page)]);
            }
            // SAFETY: the buffer is the region's, which lives longer; it holds bytes.
            let registered =
                unsafe { libc::syscall(call, fd, IORING_REGISTER_BUFFERS, &raw const buffer, 1) };
            let error = std::io::Error::last_os_error();
            match registered {
                0 => return Some(Self { ring, params, rings, entries }),
                // Some page was given back before it was held.
                _ if error.raw_os_error() == Some(libc::EFAULT) => {}
                _ => panic!("{error}"),
            }
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        let word = self.rings.wrapping_add(offset as usize).cast::<AtomicU32>();
        // SAFETY: a word of the rings, which are mapped as long as `self` lives.
        unsafe { &*word }
    }

    /// Has the kernel read so many bytes of a file to where they are held.
    fn read(&self, file: &File, to: *mut u8, len: usize) {
        let tail = self.word(self.params.sq.tail);
        let slot = tail.load(Ordering::Relaxed)
            & self.word(self.params.sq.ring_mask).load(Ordering::Relaxed);
        let entry = self.entries.wrapping_add(64 * slot as usize);
        let mut bytes = [0_u8; 64];
        bytes[0] = IORING_OP_READ_FIXED;
        bytes[4..8].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        bytes[16..24].copy_from_slice(&(to.addr() as u64).to_ne_bytes());
        bytes[24..28].copy_from_slice(&(len as u32).to_ne_bytes());
        // SAFETY: an entry of the ring.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), entry, bytes.len()) };
        self.word(self.params.sq.array + 4 * slot).store(slot, Ordering::Relaxed);
        tail.fetch_add(1, Ordering::Release);
        let (call, fd) = (libc::SYS_io_uring_enter, self.ring.as_raw_fd());
        // SAFETY: submits what is in the ring, and waits for it.
        let entered = unsafe {
            libc::syscall(call, fd, 1, 1, IORING_ENTER_GETEVENTS, ptr::null::<u8>(), 0_usize)
        };
        assert_eq!(entered, 1, "{}", std::io::Error::last_os_error());
        let head = self.word(self.params.cq.head);
        let slot = head.load(Ordering::Relaxed)
            & self.word(self.params.cq.ring_mask).load(Ordering::Relaxed);
        // The result is behind the word that names the request.
        let result = self.word(self.params.cq.cqes + 16 * slot + 8).load(Ordering::Acquire);
        head.fetch_add(1, Ordering::Release);
        assert_eq!(result.cast_signed(), len as i32);
    }
}

impl Drop for Held {
    /// Nothing is held any more when it is over.
    fn drop(&mut self) {
        let (call, fd) = (libc::SYS_io_uring_register, self.ring.as_raw_fd());
        // SAFETY: gives up the buffers.
        let unregistered =
            unsafe { libc::syscall(call, fd, IORING_UNREGISTER_BUFFERS, ptr::null::<u8>(), 0) };
        assert_eq!(unregistered, 0, "{}", std::io::Error::last_os_error());
        for mapped in [self.rings, self.entries] {
            // SAFETY: mapped by this, and used no more.
            unsafe { libc::munmap(mapped.cast(), RINGS) };
        }
    }
}

/// Whether the kernel tells of pages that it holds: it can move others.
fn can_tell() -> bool {
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let can = version >= (6, 8);
    if !can {
        common::not_run("before Linux 6.8 the kernel does not tell of pinned pages");
    }
    can
}

const PAGES: usize = 256;

/// A region of a file, and the file, with so many pages there at most.
fn map(mode: Mode, expected: &[u8], bound: Option<usize>) -> (Region, File) {
    map_by_granules(mode, expected, 1, bound)
}

/// As above, with granules of so many pages.
fn map_by_granules(
    mode: Mode,
    expected: &[u8],
    granule: usize,
    bound: Option<usize>,
) -> (Region, File) {
    let file = file_with(expected);
    let source = FileSource::new(file.try_clone().unwrap()).unwrap();
    let options = Options::new().writable().on_failure(OnFailure::exit(42, "over the bound\n"));
    let options = options.granule(granule * PAGE);
    let options = match bound {
        Some(pages) => options.resident(pages * PAGE),
        None => options,
    };
    let region = match mode {
        Mode::Signal => options.map(source).unwrap(),
        Mode::Thread => options.handler_threads(1).map(source).unwrap(),
    };
    (region, file)
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// What the device will write.
fn from_the_device(seed: u64, len: usize) -> (Vec<u8>, File) {
    let bytes = random_bytes(len, seed);
    let file = file_with(&bytes);
    (bytes, file)
}

#[test]
fn a_page_that_a_device_holds_is_not_given_back() {
    common::watch();
    if !can_tell() {
        return;
    }
    for mode in MODES {
        for (held, granule, bound) in [(5..6, 1, 16), (3..7, 1, 16), (5..18, 16, 128)] {
            let mut expected = random_bytes(PAGES * PAGE, 1);
            let (region, file) = map_by_granules(mode, &expected, granule, Some(bound));
            let part = held.start * PAGE..held.end * PAGE;
            let Some(device) = Held::new(&region, &part) else { return };
            for _ in 0..3 {
                // All others come and go.
                for page in (held.end..PAGES).chain(0..held.start) {
                    assert_eq!(byte(&region, page * PAGE), expected[page * PAGE]);
                }
                let (bytes, source) = from_the_device(2, part.len());
                device.read(&source, region.as_ptr().wrapping_add(part.start), part.len());
                expected[part.clone()].copy_from_slice(&bytes);
                for page in held.clone() {
                    let at = page * PAGE + 1234;
                    assert_eq!(byte(&region, at), expected[at], "{mode:?}: the device wrote it");
                }
            }
            assert!(region.most_resident().unwrap() <= bound * PAGE);
            drop(device);
            // Now it can go, and is stored.
            assert!(bytes(&region) == expected);
            region.write_back(0..region.len()).unwrap();
            assert!(content(&file) == expected, "{mode:?}");
        }
    }
}

#[test]
fn a_page_that_a_device_holds_is_written_and_stays_to_be_written() {
    common::watch();
    if !can_tell() {
        return;
    }
    for mode in MODES {
        for access in [Access::ReadWrite, Access::Read] {
            let mut expected = random_bytes(PAGES * PAGE, 3);
            let (region, file) = map(mode, &expected, None);
            for page in 2..12 {
                expected[page * PAGE] = 7;
                region.write(page * PAGE, &[7]);
            }
            let part = 5 * PAGE..8 * PAGE;
            let Some(device) = Held::new(&region, &part) else { return };
            region.protect(4 * PAGE..7 * PAGE, access).unwrap();
            for seed in 4..8 {
                assert!(region.write_back(0..region.len()).unwrap() >= part.len());
                assert!(content(&file) == expected, "{mode:?}: as it is now");
                let written = region.written(0..region.len()).unwrap();
                assert!(written.iter().eq([&part]), "{mode:?}: others are clean: {written:?}");
                let (bytes, source) = from_the_device(seed, part.len());
                device.read(&source, region.as_ptr().wrapping_add(part.start), part.len());
                expected[part.clone()].copy_from_slice(&bytes);
            }
            drop(device);
            assert_eq!(region.write_back(0..region.len()).unwrap(), part.len());
            assert!(content(&file) == expected);
            assert!(region.written(0..region.len()).unwrap().is_empty());
            assert!(bytes(&region) == expected);
            // Writes are seen again, also to what was not protected against them.
            region.write(7 * PAGE, &[8]);
            let written = region.written(0..region.len()).unwrap();
            assert!(written.iter().eq([&(7 * PAGE..8 * PAGE)]), "{written:?}");
        }
    }
}

/// The lock of an application on a part is no reason not to see it.
#[test]
fn a_page_in_locked_memory_that_a_device_holds_is_not_given_back() {
    common::watch();
    if !can_tell() {
        return;
    }
    for mode in MODES {
        let mut expected = random_bytes(PAGES * PAGE, 9);
        let (region, file) = map(mode, &expected, Some(16));
        let part = 5 * PAGE..6 * PAGE;
        let start = region.as_ptr().wrapping_add(4 * PAGE).cast();
        // SAFETY: locks pages of the region; those that are missing need not come.
        if unsafe { libc::mlock(start, 4 * PAGE) } != 0 {
            println!("mlock: {}", std::io::Error::last_os_error());
        }
        let Some(device) = Held::new(&region, &part) else { return };
        for page in (6..PAGES).chain(0..5).chain(6..PAGES) {
            assert_eq!(byte(&region, page * PAGE), expected[page * PAGE]);
        }
        let (bytes_, source) = from_the_device(10, part.len());
        device.read(&source, region.as_ptr().wrapping_add(part.start), part.len());
        expected[part.clone()].copy_from_slice(&bytes_);
        drop(device);
        assert!(bytes(&region) == expected, "{mode:?}");
        region.write_back(0..region.len()).unwrap();
        assert!(content(&file) == expected, "{mode:?}");
    }
}

/// A bound that is full of held pages refuses, and does not wait for ever.
#[test]
fn a_bound_that_is_full_of_held_pages_refuses() {
    common::watch();
    const NO_IO_URING: i32 = 43;
    let name = "a_bound_that_is_full_of_held_pages_refuses";
    if let Some(case) = child_case() {
        let mode = if case == "signal" { Mode::Signal } else { Mode::Thread };
        let expected = random_bytes(PAGES * PAGE, 11);
        let (region, _file) = map(mode, &expected, Some(16));
        // Not one more could be held while the bound is kept.
        let Some(device) = Held::new(&region, &(0..16 * PAGE)) else {
            std::process::exit(NO_IO_URING)
        };
        byte(&region, 100 * PAGE);
        drop(device);
        return;
    }
    if can_tell() {
        for case in ["signal", "thread"] {
            let ended = run_child(name, case);
            if ended.exit == Some(NO_IO_URING) {
                return common::not_run("no io_uring");
            }
            assert_eq!(ended.exit, Some(42), "{case}: {ended:?}");
        }
    }
}

/// Discarding is the user's word: the page goes, held or not, and the next access gets the
/// source's.
#[test]
fn what_is_discarded_goes_even_if_a_device_holds_it() {
    common::watch();
    for mode in MODES {
        let expected = random_bytes(PAGES * PAGE, 12);
        let (region, _file) = map(mode, &expected, None);
        let Some(device) = Held::new(&region, &(5 * PAGE..6 * PAGE)) else { return };
        region.discard(4 * PAGE..8 * PAGE).unwrap();
        assert!(bytes(&region) == expected);
        let (_, source) = from_the_device(13, PAGE);
        device.read(&source, region.as_ptr().wrapping_add(5 * PAGE), PAGE);
        assert!(bytes(&region) == expected, "it has another page");
    }
}

/// A file that is read past the page cache, straight into memory; `None` where that cannot be done.
fn direct(expected: &[u8]) -> Option<File> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("direct");
    std::fs::write(&path, expected).unwrap();
    match File::options().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => Some(file),
        Err(error) => {
            common::not_run(format_args!("no direct I/O here: {error}"));
            None
        }
    }
}

/// Reads of a file with direct I/O into a region, while it is evicted and written back.
#[test]
fn direct_reads_into_a_region_arrive() {
    common::watch();
    if !can_tell() {
        return;
    }
    const READ: usize = 64;
    let disk = random_bytes(8 * PAGES * PAGE, 14);
    let Some(disk_file) = direct(&disk) else { return };
    // Pages of the region and of its granules.
    let cases = [
        (PAGES, 1, None),
        (PAGES, 1, Some(16)),
        (PAGES, 1, Some(128)),
        (PAGES, 16, None),
        (PAGES, 16, Some(128)),
        (8 * PAGES, 512, None),
        (12 * PAGES, 512, Some(8 * PAGES + 128)),
    ];
    for mode in MODES {
        for (pages, granule, bound) in cases {
            let what = format!("{mode:?} {granule} {bound:?}");
            let mut expected = random_bytes(pages * PAGE, 15);
            let (region, file) = map_by_granules(mode, &expected, granule, bound);
            if mode == Mode::Thread && !common::serves_system_calls(&region) {
                continue;
            }
            let mut random = StdRng::seed_from_u64(16);
            let done = AtomicU32::new(0);
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    while done.load(Ordering::Relaxed) == 0 {
                        region.write_back(0..region.len()).unwrap();
                    }
                });
                // Reads that need more pages than the bound leaves wait until they are refused.
                let times = if bound == Some(16) && mode == Mode::Thread { 3 } else { 40 };
                for _ in 0..times {
                    let [from, to] =
                        [8 * PAGES, pages].map(|pages| random.random_range(0..pages - READ) * PAGE);
                    if mode == Mode::Signal {
                        // A system call does not fault it in.
                        for at in (to..to + READ * PAGE).step_by(PAGE) {
                            region.write(at, &expected[at..=at]);
                        }
                    }
                    let memory = region.as_ptr().wrapping_add(to).cast();
                    let len = READ * PAGE;
                    // SAFETY: within the region.
                    let read = unsafe {
                        libc::pread(disk_file.as_raw_fd(), memory, len, from as libc::off_t)
                    };
                    // Some of it, if the bound does not leave all, or if some was evicted before.
                    let read = usize::try_from(read).unwrap_or(0);
                    expected[to..to + read].copy_from_slice(&disk[from..from + read]);
                    let mut shown = vec![0; READ * PAGE];
                    region.read(to, &mut shown);
                    // What did not arrive may have been written in part.
                    assert!(shown[..read] == expected[to..to + read], "{what}");
                    expected[to + read..to + READ * PAGE].copy_from_slice(&shown[read..]);
                }
                done.store(1, Ordering::Relaxed);
            });
            assert!(bytes(&region) == expected, "{what}");
            region.write_back(0..region.len()).unwrap();
            assert!(content(&file) == expected, "{what}: what it shows is stored");
        }
    }
}
