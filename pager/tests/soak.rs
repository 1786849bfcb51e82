//! Everything at once: readers and writers of regions that are discarded, protected, unmapped,
//! evicted, written back and moved meanwhile, whose files are shortened and whose sources fail,
//! beside forks and regions that come and go. No byte may be wrong, and nothing may hang.
//!
//! `PERVMA_SOAK_SECONDS` says for how long, for each mode; 2 by default.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "counts, and a hook that waits")]

mod common;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Mode, PAGE};
use pervma_pager::sys::Access;
use pervma_pager::{
    Failure, FileSource, MemorySource, OnFailure, Options, ReadFailed, Region, Response,
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

fn soak(mode: Mode, time: Duration) {
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
        let mut last = (0, 0, 0);
        let mut quiet = 0;
        while start.elapsed() < time && !repairer.is_finished() {
            std::thread::sleep(Duration::from_millis(100));
            let now = (
                counts.reads.load(Relaxed),
                counts.writes.load(Relaxed),
                counts.changes.load(Relaxed),
            );
            let stands = now.0 == last.0 || now.1 == last.1 || now.2 == last.2;
            quiet = if stands { quiet + 1 } else { 0 };
            last = now;
            assert!(quiet < 300, "a thread hangs: {counts:?}");
        }
        done.store(true, Relaxed);
    });
    let counted = stats() - before;
    counts.failures.store(counted.failures, Relaxed);
    println!("{mode:?}, {time:?}: {counts:?}\n{counted:?}");
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
    common::watch_for(2 * seconds + 60);
    for mode in [Mode::Signal, Mode::Thread] {
        soak(mode, Duration::from_secs(seconds));
    }
}
