//! Memory that is made up when it is touched:
//! `cargo run --release -p pervma-pager --example pager_hello`

use std::thread;

use pervma_pager::{Error, Options, ReadFailed, SignalSafe, Source, stats};

const PAGE: usize = 4096;
const PAGES: usize = 64;

/// Each byte of page n is n. A source of yours would decompress, or ask another machine.
struct Numbers;

impl Source for Numbers {
    fn size(&self) -> u64 {
        (PAGES * PAGE) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        for (number, page) in (offset / PAGE as u64..).zip(buf.chunks_mut(PAGE)) {
            page.fill(number as u8);
        }
        Ok(())
    }
}

// SAFETY: it only writes to the buffer it was given, so it may run in a signal handler. A source
// that locks or allocates may not: it is for `Options::handler_threads`, which needs no such
// promise.
unsafe impl SignalSafe for Numbers {}

fn main() -> Result<(), Error> {
    let before = stats();
    let region = Options::new().writable().map(Numbers)?;

    // Two threads touch every page. The first to touch one has a page fault, and fills it.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..PAGES).for_each(|n| assert_eq!(byte(&region, n * PAGE), n as u8)));
        }
    });
    let counted = stats() - before;
    println!("{PAGES} pages: {} faults of two threads, {} filled", counted.faults, counted.pages);
    assert_eq!(counted.pages, PAGES as u64); // each once, although both threads wanted it

    // A page that is written, and then discarded, is the source's again: it is filled once more.
    region.write(7 * PAGE, &[99]);
    assert_eq!((byte(&region, 7 * PAGE), region.written(0..region.len())?), (99, vec![range(7)]));
    region.discard(range(7))?;
    assert_eq!(byte(&region, 7 * PAGE), 7);
    assert_eq!((stats() - before).pages, PAGES as u64 + 1);
    println!("page 7 was discarded, and filled again");
    Ok(())
}

fn byte(region: &pervma_pager::Region, offset: usize) -> u8 {
    let mut byte = [0];
    region.read(offset, &mut byte);
    byte[0]
}

fn range(page: usize) -> std::ops::Range<usize> {
    page * PAGE..(page + 1) * PAGE
}
