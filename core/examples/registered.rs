//! Readers that register: when that pays, and what it costs edits.
//! `cargo run --release -p pervma --example registered`
//!
//! A lookup counts its reader in the mapping, by two atomic read-modify-writes of one cache line.
//! Threads that read *the same* mapping take turns at that line. A registered reader says what it
//! reads in a place of its own. So:
//!
//! - it pays where many threads read a few mappings: guest memory, a JIT's code, a large file;
//! - it does not where each thread reads mappings of its own, whose lines no other thread wants;
//! - edits pay, while a registered reader is in use: a thread that changes or removes a mapping
//!   makes all running threads of the process pass a memory barrier (`membarrier(2)`), and looks
//!   through the places of all registered readers.
//!
//! Times differ from machine to machine, and are printed. What is checked is that no reader ever
//! sees a change that is undone or half done. (Measured with care: docs/benchmarks.md, rows `same`
//! and `registered`.)

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use pervma::AddressSpace;

const SHARED: usize = 0x1000;
const OTHER: usize = 0x8000;
const READERS: usize = 2;
const LOOKUPS: u32 = 500_000;
const EDITS: u32 = 2_000;

/// How often the mapping was changed, in two places.
type Changes = [u32; 2];
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    let space = &AddressSpace::new(4096);
    space.insert(SHARED..SHARED + 0x4000, [0; 2])?;
    space.insert(OTHER..OTHER + 0x4000, [0; 2])?;

    println!("{READERS} threads read one mapping, ns a lookup:");
    let counted = || {
        for _ in 0..LOOKUPS {
            whole(*space.read(SHARED)?);
        }
        Ok(())
    };
    println!("{:>8} counted", together(counted)?);
    let registered = || {
        let reader = space.register()?;
        for _ in 0..LOOKUPS {
            whole(*reader.read(SHARED)?);
        }
        Ok(())
    };
    println!("{:>8} registered", together(registered)?);
    let with_cursor = || {
        let reader = space.register()?;
        let mut cursor = reader.cursor(); // tries the mapping first that it read last
        for _ in 0..LOOKUPS {
            whole(*cursor.read(SHARED)?);
        }
        Ok(())
    };
    println!("{:>8} registered, with a cursor", together(with_cursor)?);

    println!("a thread changes that mapping, ns a change, while another reads elsewhere:");
    println!("{:>8} counted", change_beside(space, || Ok(whole(*space.read(OTHER)?)))?);
    let reader = space.register()?;
    println!("{:>8} registered", change_beside(space, || Ok(whole(*reader.read(OTHER)?)))?);

    // The same reader, where the changes are.
    let mut last = 0;
    change_beside(space, || {
        let now = whole(*reader.read(SHARED)?);
        assert!(now >= last, "a change was undone");
        last = now;
        Ok(now)
    })?;
    drop(reader); // from here on, edits pay nothing again
    assert_eq!(whole(*space.try_read(SHARED)?), 3 * EDITS);
    println!("no lookup has seen a change that was undone or half done");
    Ok(())
}

/// Checks that no change is half done, and says how many there were.
fn whole(vma: Changes) -> u32 {
    assert_eq!(vma[0], vma[1], "a change is half done");
    vma[0]
}

/// Runs `work` on all readers at once; the time of a lookup, in nanoseconds.
fn together(work: impl Fn() -> Result<()> + Sync) -> Result<u128> {
    let begin = Instant::now();
    thread::scope(|scope| {
        let readers = [(); READERS].map(|()| scope.spawn(&work));
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| "a panic")?)
    })?;
    Ok(each(begin.elapsed(), LOOKUPS))
}

/// Changes the shared mapping while this thread looks up; the time of a change, in nanoseconds.
fn change_beside(
    space: &AddressSpace<Changes>,
    mut look_up: impl FnMut() -> Result<u32>,
) -> Result<u128> {
    thread::scope(|scope| {
        let editor = scope.spawn(|| {
            let begin = Instant::now();
            for _ in 0..EDITS {
                let mut edit = space.edit()?;
                let mut vma = edit.write(SHARED)?;
                vma[0] += 1;
                vma[1] += 1;
            }
            Ok(each(begin.elapsed(), EDITS))
        });
        while !editor.is_finished() {
            look_up()?;
        }
        editor.join().map_err(|_| "a panic")?
    })
}

fn each(time: Duration, times: u32) -> u128 {
    time.as_nanos() / u128::from(times)
}
