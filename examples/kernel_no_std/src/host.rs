//! The machine when this is a normal program: threads are the processors.

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::platform::{self, POOL};
use crate::{INIT, PAGES, Process, Vma};

/// The most processors that there may be.
pub(crate) const PROCESSORS: usize = 4;

std::thread_local! {
    static PROCESSOR: Cell<usize> = const { Cell::new(0) };
}

/// The number of the running processor.
pub(crate) fn processor() -> usize {
    PROCESSOR.get()
}

/// Waits for another processor for a moment. It may be a thread that has no real processor.
pub(crate) fn pause() {
    thread::yield_now();
}

/// The counts of what a processor has done.
#[derive(Default)]
struct Done {
    faults: u64,
    refused: u64,
    changes: u64,
}

type Outcome<T> = Result<T, &'static str>;

/// The `main` of the program.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("kernel_no_std: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    // The timer; it ends with the program.
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_millis(1));
            platform::tick();
        }
    });
    let most = crate::check_one_processor(&INIT)?;
    println!("one processor: faults, mprotect, munmap; {most} mappings in a pool of {POOL} bytes");

    let stop = &AtomicBool::new(false);
    let end = platform::ticks() + 500;
    let done = thread::scope(|scope| {
        let processors = [0, 1, 2, 3].map(|number| {
            scope.spawn(move || {
                PROCESSOR.set(number);
                let random = Random(number as u64 + 1);
                let work = if number < 2 { change } else { fault };
                let done = work(&INIT, random, stop);
                stop.fetch_or(done.is_err(), Relaxed);
                done
            })
        });
        while platform::ticks() < end && !stop.load(Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Relaxed);
        let done = processors.map(|processor| processor.join().map_err(|_| "a panic")?);
        let mut sum = Done::default();
        for one in done {
            let Done { faults, refused, changes } = one?;
            sum.faults += faults;
            sum.refused += refused;
            sum.changes += changes;
        }
        Ok::<_, &'static str>(sum)
    })?;
    let Done { faults, refused, changes } = done;
    let present = crate::check_page_table(&INIT)?;
    println!(
        "{PROCESSORS} processors: {faults} faults served, {refused} refused, {changes} changes"
    );
    println!("each of the {present} pages that are present is its mapping's");
    if faults == 0 || changes == 0 {
        return Err("no processor has done anything");
    }
    give_up_waiting(&INIT)
}

/// Faults at random, as programs do.
fn fault(process: &Process, mut random: Random, stop: &AtomicBool) -> Outcome<Done> {
    let mut done = Done::default();
    while !stop.load(Relaxed) {
        let (addr, write) = (random.below(PAGES * crate::PAGE), random.below(2) == 0);
        match process.fault(addr, write) {
            Ok(()) => done.faults += 1,
            Err(crate::Fault::Broken(what)) => return Err(what),
            Err(_) => done.refused += 1,
        }
    }
    Ok(done)
}

/// Makes random changes.
fn change(process: &Process, mut random: Random, stop: &AtomicBool) -> Outcome<Done> {
    let mut done = Done::default();
    while !stop.load(Relaxed) {
        let len = crate::PAGE * (1 + random.below(32));
        let start = random.below(PAGES) * crate::PAGE;
        let writable = random.below(2) == 0;
        let changed = match random.below(3) {
            0 => process
                .mmap(len, Vma { object: random.below(1 << 16), offset: 0, writable })
                .is_ok(),
            1 => process.mprotect(start..start + len, writable).is_ok(),
            _ => process.munmap(start..start + len).is_ok(),
        };
        done.changes += u64::from(changed);
        pause();
    }
    Ok(done)
}

/// Checks a deadline: the wait ends when its time has come, and nothing has changed.
fn give_up_waiting(process: &Process) -> Outcome<()> {
    let range = process.mmap(crate::PAGE, Vma { object: 0, offset: 0, writable: false });
    let range = range.map_err(|_| "no gap of one page")?;
    let (reading, over) = (&Barrier::new(2), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            PROCESSOR.set(1);
            let guard = process.space.read(range.start);
            reading.wait();
            while !over.load(Relaxed) {
                pause();
            }
            drop(guard);
        });
        reading.wait();
        let exclusion = process.space.exclude(range.clone());
        let drained = exclusion.map(|exclusion| exclusion.wait_until(platform::ticks() + 5));
        over.store(true, Relaxed);
        if drained == Ok(false) { Ok(()) } else { Err("a reader was overlooked") }
    })?;
    println!("a munmap that waits for a reader gives up when its time has come");
    process.munmap(range).map_err(|_| "the reader has left")
}

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}
