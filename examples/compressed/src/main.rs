//! A snapshot of 48 MiB that is kept compressed in a file, used as if it were memory: a page is
//! decompressed when a thread touches it, and at most 4 MiB of it are decompressed at a time.
//!
//! This is what the pager is for. The kernel maps files; it cannot map what a file *means*. To read
//! the snapshot in the ordinary way is to decompress all of it first.
//!
//! - `snapshot.rs` is the source: an index of frames, and a `read_at` that decompresses one. It
//!   keeps to the rules of signal handlers, so a fault is served by the thread that made it, with
//!   no change of threads. `no_allocation.rs` holds it to the rule that is broken most easily.
//! - Here two threads read all pages, each in a random order of its own, and compare every byte.
//! - Then a frame is damaged. To touch a page of it is an error of accesses to this page, and of no
//!   others: the region says what becomes of the thread ([`OnFailure`]), and here it ends the
//!   process, a second one.
//!
//! What to know before you do the same: the handler runs on the alternate stack that Rust gives its
//! threads, 8 KiB. A fault takes half of it, or in a debug build nearly all of it, and a decoder
//! that is not optimised does not fit in the rest. So this package is optimised in debug builds
//! too (`Cargo.toml` of the workspace). A source that needs more belongs in thread mode.
#![deny(unreachable_pub)]

mod no_allocation;
mod snapshot;

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use pervma_pager::{OnFailure, Options, Region, Source};

use crate::snapshot::{FRAME, Snapshot};

/// Bytes of the snapshot. The last page and the last frame are not whole.
const SIZE: usize = (48 << 20) + 5001;
/// Bytes of it that may be decompressed.
const BOUND: usize = 4 << 20;
const PAGE: usize = 4096;
const THREADS: usize = 2;
/// How the second process ends.
const DAMAGED: u8 = 7;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let ended = match std::env::args_os().nth(1) {
        None => show(),
        Some(path) => touch_damaged(Path::new(&path)),
    };
    if let Err(error) = ended {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn show() -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    let stored = snapshot::write(file.as_file_mut(), SIZE as u64, content)?;
    println!("{SIZE} bytes are stored in {stored}");
    let snapshot = Arc::new(Snapshot::open(file.reopen()?)?);

    let (before, begin) = (pervma_pager::stats(), Instant::now());
    let region = &map(Arc::clone(&snapshot))?;
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|number| scope.spawn(move || compare_all(region, number))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a panic")?)
    })?;
    let (counted, took) = (pervma_pager::stats() - before, begin.elapsed());
    let most = region.most_resident().ok_or("there is no bound")?;
    println!("{THREADS} threads have compared every byte in {took:.1?}:");
    println!("  {} faults, {} pages filled", counted.faults, counted.pages);
    println!("  {} pages given back, at most {most} bytes there at a time", counted.evicted);
    if most > BOUND || counted.failures != 0 || counted.evicted == 0 {
        return Err("the bound was not kept, or a page could not be had".into());
    }
    // A page that is given back alone: its frame is decompressed for it, and only it is filled.
    for page in 4 * FRAME / PAGE..8 * FRAME / PAGE {
        compare(region, page)?;
        region.discard(page * PAGE..(page + 1) * PAGE)?;
        compare(region, page)?;
    }
    show_damage(&snapshot, file.path())
}

/// Maps a snapshot: a fault fills a frame.
fn map(snapshot: Arc<Snapshot>) -> Result<Region> {
    let on_failure = OnFailure::exit(DAMAGED.into(), "a frame of the snapshot is damaged\n");
    Ok(Options::new().granule(FRAME).resident(BOUND).on_failure(on_failure).map(snapshot)?)
}

/// Reads all pages in an order that looks random, each thread in another, and compares them.
fn compare_all(region: &Region, thread: usize) -> Result<()> {
    const PAGES: usize = SIZE.div_ceil(PAGE);
    /// A prime that does not divide their number, so each comes once.
    const STRIDE: usize = 7919;
    const _: () = assert!(!PAGES.is_multiple_of(STRIDE));
    let first = thread * PAGES / THREADS;
    (0..PAGES).try_for_each(|turn| compare(region, (first + turn * STRIDE) % PAGES))
}

/// Reads a page, and compares each byte.
fn compare(region: &Region, page: usize) -> Result<()> {
    let (mut is, mut should_be) = ([0; PAGE], [0; PAGE]);
    let len = PAGE.min(SIZE - page * PAGE);
    region.read(page * PAGE, &mut is[..len]);
    content((page * PAGE) as u64, &mut should_be[..len]);
    if is == should_be { Ok(()) } else { Err(format!("wrong bytes in page {page}").into()) }
}

/// What the snapshot holds from an offset on: empty frames, such that compress well, and a few that
/// do not at all.
fn content(offset: u64, bytes: &mut [u8]) {
    for (word, bytes) in (offset / 8..).zip(bytes.chunks_mut(8)) {
        let value = match word / (FRAME as u64 / 8) % 8 {
            0..4 => 0,
            4..7 => word / 3,
            _ => mixed(word),
        };
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
    }
}

/// A number that shows no pattern (the finaliser of SplitMix64).
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

// --- What is damaged -----------------------------------------------------------------------------

/// Frames that are damaged: one that is compressed, and one that is stored as it is.
const VICTIMS: [usize; 2] = [5, 7];

/// Damages frames in the file, and shows what becomes of threads that want them.
fn show_damage(snapshot: &Snapshot, path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    for victim in VICTIMS {
        let (place, mut byte) = (snapshot.place(victim), [0]);
        let middle = place.start.midpoint(place.end);
        file.read_exact_at(&mut byte, middle)?;
        file.write_all_at(&[!byte[0]], middle)?;
    }

    // A call of the source itself returns an error, and can be made before a page is touched.
    for frame in 0..8 {
        let asked = snapshot.read_at((frame * FRAME) as u64, &mut [0; PAGE]);
        if asked.is_err() != VICTIMS.contains(&frame) {
            return Err(format!("frame {frame}: {asked:?}").into());
        }
    }
    // An access to the region cannot return one: its thread gets a signal.
    let second = Command::new(std::env::current_exe()?).arg(path).output()?;
    let (printed, message) = (String::from_utf8(second.stdout)?, String::from_utf8(second.stderr)?);
    print!(
        "a second process, which touches the last page before a damaged frame, and then one in it:"
    );
    print!("\n  {printed}  {message}");
    if second.status.code() != Some(DAMAGED.into()) || !printed.contains("is right") {
        return Err(format!("it has ended with {}", second.status).into());
    }

    // An index that is damaged is noticed when the snapshot is opened.
    file.set_len(file.metadata()?.len() - 1)?;
    let Err(refused) = Snapshot::open(file) else {
        return Err("a file that was cut short was opened".into());
    };
    println!("a file that was cut short is refused: {refused}");
    Ok(())
}

/// The second process: touches the last page before a damaged frame, and then the first one in it.
fn touch_damaged(path: &Path) -> Result<()> {
    let region = map(Arc::new(Snapshot::open(File::open(path)?)?))?;
    let damaged = VICTIMS[0] * FRAME / PAGE;
    for page in [damaged - 1, damaged] {
        compare(&region, page)?;
        println!("page {page} is right");
    }
    Ok(()) // It has not noticed.
}
