//! A guest's memory, with Linux's calls:
//! `cargo run --release -p pervma-linux --example linux_hello`

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pervma_linux::{Access, Backing, Config, Errno, Mm, Part, Refusal, Signal, abi::*};

type Page = [u8; PAGE];

/// The pages behind the map: zeros, when they are touched for the first time.
#[derive(Default)]
struct Pages(Mutex<BTreeMap<usize, Box<Page>>>);

impl Pages {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Box<Page>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing for Pages {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        for page in part.range.step_by(PAGE) {
            self.lock().entry(page).or_insert_with(|| Box::new([0; PAGE]));
        }
        Ok(())
    }

    fn unmap(&self, range: Range<usize>) {
        self.lock().retain(|page, _| !range.contains(page));
    }
}

fn main() -> Result<(), Errno> {
    let mm = Mm::new(Pages::default(), Config::default());
    let (prot, flags) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    let addr = mm.mmap(0, 4 * PAGE, prot, flags, None, 0)?;

    // Touches, from two threads: each locks only the mapping, for reading.
    std::thread::scope(|scope| {
        for page in [0, 2] {
            let mm = &mm;
            scope.spawn(move || assert_eq!(mm.fault(addr + page * PAGE, Access::Write), Ok(())));
        }
    });
    assert_eq!(mm.backing().lock().len(), 2); // the other two have never been touched

    mm.mprotect(addr + PAGE, PAGE, PROT_READ)?; // splits it into three
    assert_eq!(mm.fault(addr + PAGE, Access::Write), Err(Signal::NotAllowed));
    print!("after mprotect:\n{}", mm.maps()?);
    assert_eq!(mm.maps()?.lines().count(), 3);

    mm.mprotect(addr + PAGE, PAGE, prot)?; // and merges them again
    mm.munmap(addr + 2 * PAGE, 2 * PAGE)?;
    print!("after munmap:\n{}", mm.maps()?);
    assert_eq!(mm.maps()?.lines().count(), 1);
    assert_eq!(mm.fault(addr + 2 * PAGE, Access::Read), Err(Signal::NotMapped));
    assert_eq!(mm.backing().lock().len(), 1); // its pages went with it

    // As in Linux, the call fails at the hole, and has changed what lies before it.
    assert_eq!(mm.mprotect(addr, 3 * PAGE, PROT_NONE), Err(Errno::ENOMEM));
    assert_eq!(mm.fault(addr, Access::Read), Err(Signal::NotAllowed));
    Ok(())
}
