//! A virtual machine monitor that serves its guest's page faults itself: the guest runs at once,
//! and its memory comes from a snapshot while it runs.
//!
//! What a monitor has to do is in [`restore`]:
//!
//! 1. map the guest's memory, empty, and register it with a userfaultfd;
//! 2. say with [`Extent`]s which bytes of the snapshot belong where;
//! 3. hand both to a [`Pager`], and start the processors.
//!
//! From then on an access to a page that is missing waits until one of the pager's workers has
//! filled it. Two things are worth knowing:
//!
//! - *The guest may give memory back* (a balloon, free page reporting). The kernel tells the pager
//!   so, and `madvise` does not return before the pager has read it. So the monitor must hold no
//!   lock at that time that the pager's callback takes. What was given back reads as zeros
//!   afterwards, whatever was being filled meanwhile: that is the pager's part.
//! - *The pager can go before the guest does.* [`Pager::complete`] fills all that is still missing
//!   and closes the userfaultfd: faults cost nothing any more. If a monitor just closed it, the
//!   guest would read zeros where the snapshot's bytes belong; a pager that is dropped poisons
//!   them, so that such accesses fail.
//!
//! Two threads stand for the guest's processors here. With KVM it is the same program: the
//! addresses that are registered go to `KVM_SET_USER_MEMORY_REGION` as well.
//! (`cli/tests/kvm.rs` has such a guest.)
#![expect(clippy::disallowed_types, reason = "words of the guest's memory")]

mod guest;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use pervma_serve::state::Extent;
use pervma_serve::{ClientId, MemoryFile, Notice, Options, Pager};

use crate::guest::{GuestMemory, PAGE, userfaultfd};

/// Pages of the guest's memory below the hole that devices have, and above it. The snapshot has
/// them one after the other.
const PAGES: [usize; 2] = [6 << 10, 2 << 10];
/// What the guest does not need, of the memory above the hole: it gives it back.
const FREE: Range<usize> = 1 << 10..2 << 10;
const PROCESSORS: usize = 2;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let snapshot = snapshot()?;
    let memories = [GuestMemory::map(PAGES[0] * PAGE)?, GuestMemory::map(PAGES[1] * PAGE)?];
    let (pager, client) = restore(snapshot, &memories)?;

    let sum: u64 = thread::scope(|threads| {
        let memories = &memories;
        let run = |number| threads.spawn(move || run(memories, number));
        let processors: Vec<_> = (0..PROCESSORS).map(run).collect();
        // While they run, the guest gives back what it does not need.
        memories[1].discard(FREE.start, FREE.len())?;
        // A sum that is missing is noticed below.
        let sums = processors.into_iter().map(|processor| processor.join().unwrap_or(0));
        Ok::<_, io::Error>(sums.sum())
    })?;

    let (faults, times) = pager.latency().quantiles([0.5, 0.99]);
    println!("{faults} faults, half of them answered in {:?}, 99 % in {:?}", times[0], times[1]);
    if let Some(stats) = pager.stats(client) {
        println!("{stats:?}");
    }
    // All of it is there from here on, and the descriptor closed.
    if !pager.complete(client) {
        return Err("the snapshot cannot be read to its end".into());
    }
    drop(pager);

    let wrong = check(&memories);
    println!("the guest's sum is {sum}; {wrong} pages are not what they should be");
    let expected: u64 = (0..PAGES[0] + FREE.start).map(value).sum();
    Ok(if sum == expected && wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Gives the guest's memory a pager: the guest can start.
fn restore(snapshot: File, memories: &[GuestMemory]) -> Result<(Pager, ClientId), Box<dyn Error>> {
    let userfaultfd = userfaultfd(memories)?;
    let mut offset = 0;
    let mut extents = Vec::new();
    for memory in memories {
        let len = memory.len() as u64;
        let (start, page_size, content) = (memory.addr(), PAGE as u32, Extent::SOURCE);
        extents.push(Extent { start, len, offset, page_size, content });
        offset += len;
    }
    // 64 KiB at a time, and eight times that ahead of a guest that goes from page to page.
    let options = Options::new().workers(2).granule(64 << 10).ahead(8);
    let pager = options.start(|notice| {
        if let Notice::Failed { failure, .. } = notice {
            // A real monitor would stop its processors, and say so to who runs it.
            eprintln!("the guest's memory cannot be had: {failure}");
        }
    })?;
    let client = pager.add(userfaultfd, &extents, Arc::new(MemoryFile::new(snapshot)?))?;
    Ok((pager, client))
}

/// The first word of each page in the snapshot.
fn value(page: usize) -> u64 {
    page as u64 * 3 + 1
}

/// A snapshot's memory file.
fn snapshot() -> io::Result<File> {
    let mut file = BufWriter::new(tempfile::tempfile()?);
    for number in 0..PAGES[0] + PAGES[1] {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&value(number).to_ne_bytes());
        file.write_all(&page)?;
    }
    Ok(file.into_inner()?)
}

/// What a processor does: it adds up the words that it finds, and counts each up. Each has its
/// share of the pages, of all that the guest has not given back.
fn run(memories: &[GuestMemory; 2], number: usize) -> u64 {
    let share = |pages: usize| (number..pages).step_by(PROCESSORS);
    memories[0].sum_and_count(share(PAGES[0])) + memories[1].sum_and_count(share(FREE.start))
}

/// How many pages are not what they should be.
fn check(memories: &[GuestMemory; 2]) -> usize {
    let expected = |number: usize, page: usize| match number {
        1 if FREE.contains(&page) => 0,
        _ => value(number * PAGES[0] + page) + 1,
    };
    (0..2)
        .flat_map(|number| (0..PAGES[number]).map(move |page| (number, page)))
        .filter(|&(number, page)| {
            memories[number].word(page).load(Relaxed) != expected(number, page)
        })
        .count()
}
