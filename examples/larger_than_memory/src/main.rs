//! A table of counters in a file of 64 MiB, updated at random from several threads, of which at
//! most 4 MiB are in memory at a time.
//!
//! The program says `read` and `write`; everything else happens by itself:
//!
//! - a counter that is not there is a page fault, which fills 16 KiB around it from the file;
//! - the first write to a page is a fault too, so that it is known to be written;
//! - a thread of the region gives back what was filled longest ago, and writes it to the file first
//!   if it was written. It excludes just those pages: threads that fault elsewhere do not wait.
//!
//! In the end the file is read in the ordinary way, and no update may be missing.
//!
//! Is this the right tool? For a local file like this one, often not: the kernel's own `mmap` keeps
//! what fits in memory and gives back the rest, at a fraction of the cost of a fault. It cannot
//! hold a *bound* of its own for one mapping, say when and how pages are written (here: a checksum
//! of each could be kept, or the pages be compressed), or map what is no file. Replace
//! [`FileSource`] by a source of yours, and the program stays the same.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::thread;

use pervma_pager::{FileSource, Options, Region};

/// Bytes of the table.
const TABLE: usize = 64 << 20;
/// Bytes of it that may be in memory.
const BOUND: usize = 4 << 20;
/// Bytes that a fault fills.
const GRANULE: usize = 16 << 10;
const COUNTER: usize = size_of::<u64>();
const THREADS: usize = 2;
/// Updates of each thread.
const UPDATES: usize = 20_000;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let file = tempfile::tempfile()?;
    file.set_len(TABLE as u64)?;

    let before = pervma_pager::stats();
    let table = Options::new()
        .granule(GRANULE)
        .writable()
        .resident(BOUND)
        .map(FileSource::new(file.try_clone()?)?)?;
    thread::scope(|threads| {
        for number in 0..THREADS {
            let table = &table;
            threads.spawn(move || update(table, number));
        }
    });
    // What is still there and was written goes to the file as well.
    table.write_back(0..table.len())?;
    let most = table.most_resident().unwrap_or_default();
    drop(table);

    let counted = pervma_pager::stats() - before;
    println!(
        "{} updates: {} faults, {} pages filled, {} given back, {} written",
        THREADS * UPDATES,
        counted.faults,
        counted.pages,
        counted.evicted,
        counted.written_back
    );
    println!("at most {most} bytes of {TABLE} were in memory");
    let sum = sum(&file)?;
    println!("the counters in the file add up to {sum}");
    let right = sum == (THREADS * UPDATES) as u64 && most <= BOUND && counted.evicted > 0;
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds to random counters. Each thread has its own: the region is memory, and two threads that
/// write one place would have to agree as they would anywhere.
fn update(table: &Region, thread: usize) {
    let mut random = 0x2545_F491_4F6C_DD1D_u64 + thread as u64;
    for _ in 0..UPDATES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let counter = random as usize % (TABLE / COUNTER / THREADS) * THREADS + thread;
        let mut value = [0; COUNTER];
        table.read(counter * COUNTER, &mut value);
        let value = u64::from_ne_bytes(value) + 1;
        table.write(counter * COUNTER, &value.to_ne_bytes());
    }
}

/// What the counters in the file add up to.
fn sum(file: &File) -> Result<u64, Box<dyn Error>> {
    let mut part = vec![0; 1 << 20];
    let mut sum = 0;
    for at in (0..TABLE).step_by(part.len()) {
        file.read_exact_at(&mut part, at as u64)?;
        for counter in part.chunks_exact(COUNTER) {
            sum += u64::from_ne_bytes(counter.try_into()?);
        }
    }
    Ok(sum)
}
