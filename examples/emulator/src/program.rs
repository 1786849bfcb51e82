//! A guest's program that makes random calls on several threads, and what must hold in the end.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use pervma::AddressSpace;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::host::{self, CELL, GuestFile};
use crate::{Failure, Guest, Mapping, Protection};

const PAGES: usize = 1024; // in the window
const FILE_PAGES: usize = 64;
const CALLS: usize = 40_000; // of each thread

/// How often each call was done, and how often it was refused and why.
type Tally = BTreeMap<&'static str, (u64, BTreeMap<String, u64>)>;

/// Makes random calls, at addresses that all threads use.
fn program(guest: &Guest, seed: u64, page: usize) -> Result<Tally, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::new();
    for _ in 0..CALLS {
        let prot = match random.random_range(0..10) {
            0 => Protection::None,
            1..4 => Protection::Read,
            _ => Protection::ReadWrite,
        };
        let len = random.random_range(1..=16);
        let first = random.random_range(0..=PAGES - len);
        let start = guest.window.start + first * page;
        let range = start..start + len * page;
        let cell = start + random.random_range(0..page / CELL) * CELL;
        let (call, result) = match random.random_range(0..100) {
            0..8 => {
                let file = random.random_range(0..guest.files.len());
                let offset = random.random_range(0..=FILE_PAGES - len) * page;
                ("mmap", guest.mmap(len * page, Mapping { file, offset, prot }))
            }
            8..14 => ("munmap", guest.munmap(range)),
            14..20 => ("mprotect", guest.mprotect(range, prot)),
            20..24 => ("mremap", guest.mremap(start..start + len.div_ceil(4) * page)),
            24..62 => ("load", guest.load(cell)),
            _ => ("store", guest.store(cell)),
        };
        let (done, refused) = tally.entry(call).or_default();
        match result {
            Ok(()) => *done += 1,
            Err(Failure::Refused(errno)) => {
                let why = errno.to_string();
                let why = why.split(" (os").next().unwrap_or_default(); // without its number
                *refused.entry(why.to_owned()).or_default() += 1;
            }
            Err(Failure::Broken(why)) => return Err(format!("{call} at {start:#x}: {why}")),
        }
    }
    Ok(tally)
}

/// Every mapped page, with where it is mapped from.
fn pages(maps: &[(Range<usize>, Mapping)], page: usize) -> BTreeMap<usize, Mapping> {
    let pages = maps.iter().flat_map(|(range, mapping)| {
        let offsets = (0..range.len()).step_by(page);
        offsets.map(|at| (range.start + at, Mapping { offset: mapping.offset + at, ..*mapping }))
    });
    pages.collect()
}

/// Runs the guest on four threads, prints what became of its calls, and checks the maps.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let page = rustix::param::page_size();
    let start = 0x10_0000_0000; // far from everything that a process has
    let window = start..start + PAGES * page;
    host::check_free(&window)?;
    let files = (0..4).map(|file| GuestFile::create(file, FILE_PAGES * page, file != 0));
    let files = files.collect::<Result<_, _>>()?;
    let space = AddressSpace::new(page);
    let guest = &Guest { space, files, window, collisions: AtomicU64::new(0) };

    let mut total = Tally::new();
    thread::scope(|scope| {
        let threads = [1, 2, 3, 4].map(|seed| scope.spawn(move || program(guest, seed, page)));
        for thread in threads {
            for (call, (done, refused)) in thread.join().map_err(|_| "a thread has panicked")?? {
                let sum = total.entry(call).or_default();
                sum.0 += done;
                refused.into_iter().for_each(|(why, n)| *sum.1.entry(why).or_default() += n);
            }
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    for (call, (done, refused)) in &total {
        let refused: Vec<_> = refused.iter().map(|(why, n)| format!("{n} × {why}")).collect();
        println!("{done:>8} × {call}, refused {}", refused.join(", "));
    }
    println!("{} reservations found the host's place taken", guest.collisions.load(Relaxed));

    let view = guest.space.view()?;
    let ours: Vec<_> = view.iter().map(|(range, mapping)| (range, *mapping)).collect();
    let kernels = host::mappings(&guest.window)?;
    let (ours_by_page, kernels_by_page) = (pages(&ours, page), pages(&kernels, page));
    println!("{} mappings, {} of the kernel's", ours.len(), kernels.len());
    if ours_by_page != kernels_by_page {
        return Err(format!("the maps differ:\n{ours:#x?}\n{kernels:#x?}").into());
    }
    let counted = guest.files.iter().map(GuestFile::stores).sum::<Result<u64, _>>()?;
    let stored = total.get("store").map_or(0, |(done, _)| *done);
    if counted != stored || stored == 0 {
        return Err(format!("{stored} stores were made, {counted} have arrived").into());
    }
    println!(
        "the maps agree on all {} pages, and {stored} stores have arrived",
        kernels_by_page.len()
    );
    Ok(())
}
