//! Everything at once: readers and writers of regions that are discarded, protected, unmapped,
//! evicted, written back and moved meanwhile, whose files are shortened and whose sources fail,
//! beside direct I/O to pages that are pinned and to pages that are not, advice, disks that are
//! full for a while, system calls that are refused, forks, and regions that come and go. Some are
//! judged by a pattern, and some by a plain array. No byte may be wrong, and nothing may hang.
//!
//! `PERVMA_SOAK_SECONDS` says for how long, for each mode and granule; 2 by default.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "counts, and a hook that waits")]

mod common;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Ask, Mode, PAGE};
use pervma_pager::sys::{Access, Errno};
use pervma_pager::{
    Failure, FileSource, Handlers, MemorySource, OnFailure, Options, ReadFailed, Region, Response,
    SignalSafe, Source, stats,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const PAGES: usize = 512;
const LEN: usize = PAGES * PAGE - 100;

/// What was done, for the watching thread and for the report.
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    changes: AtomicU64,
    moves: AtomicU64,
    failures: AtomicU64,
    repairs: AtomicU64,
    forks: AtomicU64,
    neighbours: AtomicU64,
    /// Reads from a device, into pages that were pinned and that were not.
    device_reads: AtomicU64,
    pins: AtomicU64,
    advice: AtomicU64,
    /// Steps of what is judged by arrays.
    judged: AtomicU64,
    disks_full: AtomicU64,
    refusals: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The byte that belongs at an offset.
fn pattern(at: usize) -> u8 {
    ((at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 37) as u8
}

fn patterns(range: Range<usize>) -> &'static [u8] {
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| (0..LEN).map(pattern).collect());
    &ALL[range]
}

fn file() -> File {
    common::file_with(patterns(0..LEN))
}

/// A file that the kernel keeps in folios of a page each: when a file is cut inside of a larger
/// one, a `pread` that is under way gets zeros for what was cut, and no error.
fn file_of_small_folios() -> File {
    let file = tempfile::tempfile().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    for at in (0..LEN).step_by(PAGE) {
        file.write_all_at(patterns(at..(at + PAGE).min(LEN)), at as u64).unwrap();
    }
    file
}

fn map<S: Source + SignalSafe + 'static>(mode: Mode, options: Options, source: S) -> Region {
    match mode {
        Mode::Signal => options.map(source).unwrap(),
        Mode::Thread => options.handler_threads(2).map(source).unwrap(),
    }
}

/// Reads random places of pages that `mine` says, which hold the pattern.
fn read(region: &Region, mine: fn(usize) -> bool, counts: &Counts, random: &mut StdRng) {
    let mut bytes = [0; 80];
    let at = random.random_range(0..LEN);
    let most = bytes.len().min(PAGE - at % PAGE).min(LEN - at);
    let bytes = &mut bytes[..random.random_range(1..=most)];
    if !mine(at / PAGE) {
        return;
    }
    region.read(at, bytes);
    for (at, byte) in (at..).zip(bytes) {
        assert_eq!(*byte, pattern(at), "at {at:#x}");
    }
    count(&counts.reads);
}

/// A few pages of a kind: of four in a row, the one of this remainder.
fn pages_of(kind: usize, random: &mut StdRng) -> Range<usize> {
    let page = random.random_range(0..PAGES / 4) * 4 + kind;
    page * PAGE..((page + 1) * PAGE).min(LEN)
}

/// Discards, protects and writes back what others read and write; unmaps what no other thread
/// reads.
fn change(region: &Region, counts: &Counts, random: &mut StdRng) {
    match random.random_range(0..6) {
        0 | 1 => region.discard(pages_of(random.random_range(1..=2), random)).unwrap(),
        2 => {
            let range = pages_of(1, random).start..pages_of(1, random).end;
            let range = if range.is_empty() { 0..LEN } else { range };
            region.write_back(range).unwrap();
        }
        3 => {
            // Of what is only read.
            let part = pages_of(2, random);
            region.protect(part.clone(), Access::Read).unwrap();
            region.protect(part, Access::ReadWrite).unwrap();
        }
        _ => {
            let part = pages_of(3, random);
            region.unmap(part.clone()).unwrap();
            region.map(part.clone()).unwrap();
            let mut bytes = vec![0; part.len()];
            region.read(part.start, &mut bytes);
            assert!(bytes == patterns(part.clone()));
            region.protect(part.clone(), Access::None).unwrap();
            region.protect(part, Access::ReadWrite).unwrap();
        }
    }
    count(&counts.changes);
}

/// Writes its own pages and knows what is there.
fn write(region: &Region, known: &mut [u8], counts: &Counts, random: &mut StdRng) {
    let part = pages_of(0, random);
    let at = random.random_range(part.clone());
    let mut found = [0];
    region.read(at, &mut found);
    assert_eq!(found[0], known[at], "at {at:#x}");
    known[at] = random.random();
    region.write(at, &known[at..=at]);
    count(&counts.writes);
}

/// How often failing regions were repaired.
static REPAIRED: AtomicU64 = AtomicU64::new(0);

/// Waits until a thread has repaired the region, and tries again.
fn wait_for_repair(failure: &Failure) -> Response {
    assert!(failure.offset() < LEN);
    let before = REPAIRED.load(Relaxed);
    while REPAIRED.load(Relaxed) == before {
        let pause = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 100_000 };
        let _ = rustix::thread::nanosleep(&pause);
    }
    Response::Resume
}

/// The pattern, if it delivers.
struct Flaky(AtomicU64);

impl Source for Flaky {
    fn size(&self) -> u64 {
        LEN as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        if self.0.fetch_add(1, Relaxed) % 200 == 199 {
            return Err(ReadFailed);
        }
        for (at, byte) in (offset as usize..).zip(buf) {
            *byte = pattern(at);
        }
        Ok(())
    }
}

// SAFETY: an atomic, arithmetic, and the buffer it is given.
unsafe impl SignalSafe for Flaky {}

/// Forks a child that touches a region: it must die of it.
fn fork_and_touch(region: &Region) {
    let start = region.as_ptr();
    // SAFETY: the child touches memory and exits; it takes no lock and allocates nothing.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: alarms are not inherited; no condition.
        unsafe { libc::alarm(20) };
        // SAFETY: nothing is mapped there in a child: this ends it.
        let byte = unsafe { start.read_volatile() };
        // SAFETY: ends the process.
        unsafe { libc::_exit(100 + i32::from(byte) % 100) }
    }
    let mut status = 0;
    // SAFETY: waits for our child, and writes the status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
}

/// Shortens the file and writes it anew.
fn shorten(file: &File, random: &mut StdRng) {
    // Whole pages: of a page that is cut, the kernel lets a read that races see zeros.
    let len = random.random_range(0..PAGES) * PAGE;
    file.set_len(len as u64).unwrap();
    std::thread::sleep(Duration::from_micros(random.random_range(0..2000)));
    // In order, so that no thread reads anything but the pattern or the end.
    for at in (len..LEN).step_by(PAGE) {
        file.write_all_at(patterns(at..(at + PAGE).min(LEN)), at as u64).unwrap();
    }
}

/// Lets the threads go on that met a failure.
fn repair(regions: [&Region; 2]) {
    for region in regions {
        region.discard(0..LEN).unwrap();
    }
    REPAIRED.fetch_add(1, Relaxed);
    std::thread::sleep(Duration::from_millis(2));
}

/// Moves, grows and shrinks a region of its own while its evictor works, and knows what is there.
fn carry(region: &mut Region, known: &mut [u8], counts: &Counts, random: &mut StdRng) {
    let len = region.len();
    for _ in 0..20 {
        let at = random.random_range(0..len);
        let mut found = [0];
        region.read(at, &mut found);
        assert_eq!(found[0], known[at], "at {at:#x} of {len:#x}");
        known[at] = random.random();
        region.write(at, &known[at..=at]);
    }
    match random.random_range(0..4) {
        0 => region.relocate(random.random_range(0..2 * LEN)).unwrap(),
        1 => {
            // What is not written back is lost with the end.
            region.write_back(0..len).unwrap();
            region.resize(random.random_range(1..=LEN)).unwrap();
        }
        _ => {
            region.write_back(0..len).unwrap();
        }
    }
    count(&counts.moves);
}

/// A region beside a plain array that says what is there.
struct Judged {
    region: Region,
    known: Vec<u8>,
}

impl Judged {
    const LEAST: usize = 256;

    /// With a bound of a quarter, or of as much as its granules need for some to be kept.
    fn new<S: SignalSafe + 'static>(
        mode: Mode,
        granule: usize,
        handlers: &Handlers,
        source: impl FnOnce(&[u8]) -> S,
    ) -> Self {
        let pages = (16 * granule).max(Self::LEAST);
        let known = common::random_bytes(pages * PAGE - 9, granule as u64);
        let bound = (pages / 4).max(8 * granule);
        // SAFETY: an atomic, and a sleep.
        let hook = unsafe { OnFailure::call(wait_for_room, 0) };
        let options = Options::new().granule(granule * PAGE).resident(bound * PAGE).writable();
        let options = options.on_failure(hook);
        let region = match mode {
            Mode::Signal => options.map(source(&known)),
            Mode::Thread => options.handlers(handlers).map(source(&known)),
        };
        Self { region: region.unwrap(), known }
    }

    fn some_pages(&self, most: usize, random: &mut StdRng) -> Range<usize> {
        let pages = self.known.len() / PAGE;
        let first = random.random_range(0..pages);
        first..(first + random.random_range(1..=most)).min(pages)
    }

    fn check(&self, at: Range<usize>) {
        let mut found = vec![0; at.len()];
        self.region.read(at.start, &mut found);
        let wrong = (0..at.len()).find(|&byte| found[byte] != self.known[at.start + byte]);
        assert_eq!(wrong, None, "in {at:#x?}");
    }

    /// Reads and writes, and what gives pages back that were stored.
    fn step(&mut self, random: &mut StdRng) {
        let pages = self.some_pages(4, random);
        let range = pages.start * PAGE..pages.end * PAGE;
        let at = random.random_range(range.clone());
        match random.random_range(0..10) {
            0..4 => self.check(at..(at + 100).min(range.end)),
            4..7 => {
                self.known[at] = random.random();
                self.region.write(at, &self.known[at..=at]);
            }
            7 => {
                if self.region.write_back(range.clone()).is_ok() {
                    self.region.discard(range).unwrap();
                }
            }
            8 => {
                self.region.protect(range.clone(), Access::Read).unwrap();
                self.check(range.clone());
                self.region.protect(range, Access::ReadWrite).unwrap();
            }
            _ => {
                let _ = self.region.prefetch(range.clone());
                let mut byte = [0];
                if self.region.read_checked(at, &mut byte).is_ok() {
                    assert_eq!(byte[0], self.known[at], "at {at:#x}");
                }
            }
        }
    }

    /// Has a device read into some pages, which it may hold longer than they are pinned.
    fn read_by_device(&mut self, disk: &Disk, counts: &Counts, random: &mut StdRng) {
        let pages = self.some_pages(6, random);
        let range = pages.start * PAGE..pages.end * PAGE;
        let from = random.random_range(0..Disk::PAGES - 6) * PAGE;
        let can_serve = self.region.serves_system_calls();
        let pin = if can_serve && random.random() {
            None
        } else {
            // Too much of the bound may be stuck.
            match self.region.pin_for_writes(range.clone()) {
                Ok(pin) => Some(pin),
                Err(_) => return,
            }
        };
        let memory = self.region.as_ptr().wrapping_add(range.start).cast();
        // SAFETY: writes the region's memory, which no other thread touches.
        let read =
            unsafe { libc::pread(disk.file.as_raw_fd(), memory, range.len(), from as libc::off_t) };
        assert_eq!(read, range.len() as isize, "{}", std::io::Error::last_os_error());
        let bytes = &disk.bytes[from..from + range.len()];
        self.known[range.clone()].copy_from_slice(bytes);
        if pin.is_some() {
            count(&counts.pins);
        }
        self.check(range);
        count(&counts.device_reads);
    }

    /// Has the kernel do what changes no byte.
    fn advise(&self, random: &mut StdRng) {
        const ASKED: [Ask; 8] = [
            Ask::Advice(libc::MADV_COLD),
            Ask::Advice(libc::MADV_PAGEOUT),
            Ask::Advice(libc::MADV_DONTDUMP),
            Ask::Advice(libc::MADV_DODUMP),
            Ask::Advice(libc::MADV_HUGEPAGE),
            Ask::Advice(libc::MADV_NOHUGEPAGE),
            Ask::Bind,
            Ask::Unlock,
        ];
        ASKED[random.random_range(0..ASKED.len())].ask(&self.region, &self.some_pages(9, random));
    }
}

/// A file that is read without the page cache, where the file system lets that be.
struct Disk {
    file: File,
    bytes: Vec<u8>,
}

impl Disk {
    const PAGES: usize = 64;

    fn new() -> Self {
        let bytes = common::random_bytes(Self::PAGES * PAGE, 77);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        file.as_file().sync_all().unwrap();
        let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(file.path());
        let file = direct.unwrap_or_else(|_| {
            common::not_run("direct I/O: the file system has none");
            File::open(file.path()).unwrap()
        });
        Self { file, bytes }
    }
}

/// Whether disks are full.
static FULL: AtomicBool = AtomicBool::new(false);

/// Waits until disks have space again.
fn wait_for_room(_: &Failure) -> Response {
    while FULL.load(Relaxed) {
        let pause = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 100_000 };
        let _ = rustix::thread::nanosleep(&pause);
    }
    Response::Resume
}

/// A file on a disk that is full now and then.
struct Filling(FileSource);

impl Source for Filling {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.0.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        if FULL.load(Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.write_at(offset, bytes)
    }
}

// SAFETY: that of the file.
unsafe impl SignalSafe for Filling {}

/// A region's life in a thread that may not make a call. Operations may fail, and bytes may not be
/// wrong.
fn live_without(call: libc::c_long, errno: Errno, mode: Mode, random: &mut StdRng) {
    common::refuse(call, errno);
    let bytes = common::random_bytes(40 * PAGE, 5);
    let file = common::file_with(&bytes);
    let options = Options::new().granule(4 * PAGE).writable().resident(20 * PAGE);
    let Ok(source) = FileSource::new(file) else { return };
    let mapped = match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    };
    let Ok(mut region) = mapped else { return };
    let mut known = bytes;
    for _ in 0..200 {
        let at = random.random_range(0..known.len());
        let mut found = [0];
        region.read(at, &mut found);
        assert_eq!(found[0], known[at], "at {at:#x} without {call}");
        known[at] = random.random();
        region.write(at, &known[at..=at]);
    }
    let _ = region.relocate(0);
    let _ = region.write_back(0..known.len());
    assert!(common::bytes(&region) == known, "without {call}");
}

/// Calls without which accesses are served all the same.
const REFUSED: [libc::c_long; 9] = [
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_mincore,
    libc::SYS_epoll_pwait2,
    libc::SYS_mlock2,
    libc::SYS_lseek,
    libc::SYS_pwritev2,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_mprotect,
];

fn soak(mode: Mode, granule: usize, time: Duration) {
    let counts = Counts::default();
    let before = stats();
    let done = AtomicBool::new(false);

    let options = Options::new().granule(4 * PAGE).resident(LEN / 3).writable();
    let live = map(mode, options.clone(), FileSource::new(file()).unwrap());
    let shortened = file_of_small_folios();
    // SAFETY: an atomic, and a sleep.
    let hook = unsafe { OnFailure::call(wait_for_repair, 0) };
    let failing = Options::new().granule(4 * PAGE).on_failure(hook);
    let source = FileSource::new(shortened.try_clone().unwrap()).unwrap();
    let short = map(mode, failing.clone(), source);
    let flaky = map(mode, failing.resident(LEN / 2), Flaky(AtomicU64::new(0)));
    let handlers = &Handlers::new(3).unwrap();

    std::thread::scope(|threads| {
        let (live, short, flaky, counts, done) = (&live, &short, &flaky, &counts, &done);
        let running = || !done.load(Relaxed);
        // They may wait for a repair.
        let mut readers = Vec::new();
        for seed in 0..2 {
            threads.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                while running() {
                    read(live, |page| matches!(page % 4, 1 | 2), counts, &mut random);
                }
            });
            readers.push(threads.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                while running() {
                    read(short, |_| true, counts, &mut random);
                    read(flaky, |_| true, counts, &mut random);
                }
            }));
        }
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(10);
            while running() {
                change(live, counts, &mut random);
            }
        });
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(11);
            let mut known = patterns(0..LEN).to_vec();
            while running() {
                write(live, &mut known, counts, &mut random);
            }
            live.write_back(0..LEN).unwrap();
            for page in (0..PAGES).step_by(4) {
                let part = page * PAGE..(page + 1) * PAGE;
                let mut found = vec![0; PAGE];
                live.read(part.start, &mut found);
                assert!(found == known[part], "page {page}");
            }
        });
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(12);
            let options = Options::new().resident(LEN / 4).writable().capacity(LEN / 2);
            let mut region = map(mode, options, FileSource::new(file()).unwrap());
            let mut known = patterns(0..LEN).to_vec();
            while running() {
                carry(&mut region, &mut known, counts, &mut random);
            }
        });
        threads.spawn(move || {
            while running() {
                fork_and_touch(live);
                count(&counts.forks);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        threads.spawn(move || {
            while running() {
                let bytes = MemorySource::new(patterns(0..20 * PAGE));
                let region = map(mode, Options::new(), bytes);
                let mut found = vec![0; 10 * PAGE];
                region.unmap(10 * PAGE..20 * PAGE).unwrap();
                region.read(0, &mut found);
                assert!(found == patterns(0..10 * PAGE));
                count(&counts.neighbours);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(14);
            let disk = Disk::new();
            let file = |bytes: &[u8]| FileSource::new(common::file_with(bytes)).unwrap();
            let mut judged = Judged::new(mode, granule, handlers, file);
            while running() {
                match random.random_range(0..8) {
                    0 => judged.read_by_device(&disk, counts, &mut random),
                    1 => {
                        judged.advise(&mut random);
                        count(&counts.advice);
                    }
                    _ => judged.step(&mut random),
                }
                count(&counts.judged);
            }
            judged.check(0..judged.known.len());
        });
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(15);
            let file = |bytes: &[u8]| Filling(FileSource::new(common::file_with(bytes)).unwrap());
            let mut judged = Judged::new(mode, granule, handlers, file);
            while running() {
                judged.step(&mut random);
                count(&counts.judged);
            }
            while judged.region.write_back(0..judged.known.len()).is_err() {
                std::thread::yield_now();
            }
            judged.region.discard(0..judged.known.len()).unwrap();
            judged.check(0..judged.known.len());
        });
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(16);
            while running() {
                FULL.store(true, Relaxed);
                std::thread::sleep(Duration::from_millis(random.random_range(1..20)));
                FULL.store(false, Relaxed);
                count(&counts.disks_full);
                std::thread::sleep(Duration::from_millis(random.random_range(1..50)));
            }
        });
        threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(17);
            while running() {
                let call = REFUSED[random.random_range(0..REFUSED.len())];
                let errno = if random.random() { Errno::PERM } else { Errno::NOSYS };
                let seed = random.random();
                let without = move || {
                    live_without(call, errno, mode, &mut StdRng::seed_from_u64(seed));
                };
                std::thread::spawn(without).join().unwrap();
                count(&counts.refusals);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let shortened = &shortened;
        let repairer = threads.spawn(move || {
            let mut random = StdRng::seed_from_u64(13);
            // Until the readers have ended, which may wait for it.
            while readers.iter().any(|reader| !reader.is_finished()) {
                if running() {
                    shorten(shortened, &mut random);
                }
                repair([short, flaky]);
                count(&counts.repairs);
            }
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });

        let start = Instant::now();
        let mut last = [0; 4];
        let mut quiet = 0;
        while start.elapsed() < time && !repairer.is_finished() {
            std::thread::sleep(Duration::from_millis(100));
            let now = [&counts.reads, &counts.writes, &counts.changes, &counts.judged]
                .map(|count| count.load(Relaxed));
            let stands = now.iter().zip(last).any(|(now, last)| *now == last);
            quiet = if stands { quiet + 1 } else { 0 };
            last = now;
            assert!(quiet < 300, "a thread hangs: {counts:?}");
        }
        done.store(true, Relaxed);
    });
    let counted = stats() - before;
    counts.failures.store(counted.failures, Relaxed);
    println!("{mode:?}, granule of {granule} pages, {time:?}: {counts:?}\n{counted:?}");
    assert!(counted.failures > 0 && counted.evicted > 0 && counted.written_back > 0);
}

#[test]
fn no_wrong_byte_and_no_hang() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        // The other threads would go on for ever.
        std::process::abort();
    }));
    let seconds = std::env::var("PERVMA_SOAK_SECONDS").map_or(2, |text| text.parse().unwrap());
    common::watch_for(6 * seconds + 60);
    for mode in common::MODES {
        for granule in [1, 16, 512] {
            soak(mode, granule, Duration::from_secs(seconds));
        }
    }
}
