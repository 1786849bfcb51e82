//! Threads look addresses up while another one edits:
//! `cargo run --release -p pervma --example hello`

use std::error::Error;
use std::thread;

use pervma::{AddressSpace, ReadError};

/// Where the functions of a JIT lie, to the byte.
static CODE: AddressSpace<&str> = AddressSpace::new(1);

/// Lookups of a thread.
const LOOKUPS: u32 = 200_000;

fn look_up() {
    for _ in 0..LOOKUPS {
        let function = CODE.read(0x10c0);
        assert!(function.is_ok_and(|function| *function == "eval"));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Both functions appear at once, when the edit ends.
    let mut edit = CODE.edit()?;
    edit.insert(0x1000..0x10b7, "parse")?;
    edit.insert(0x10b7..0x1200, "eval")?;
    drop(edit);

    // Two threads look `eval` up while this one loads and unloads a function elsewhere. They are
    // not held up by that: a change locks only what it touches.
    let edits = thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(look_up));
        let mut edits = 0;
        while readers.iter().any(|reader| !reader.is_finished()) {
            CODE.insert(0x8000..0x8100, "temporary")?;
            let removed = CODE.remove(0x8000..0x8100)?;
            assert_eq!(removed[0].payload, "temporary"); // what is removed comes back
            edits += 2;
        }
        Ok::<_, Box<dyn Error>>(edits)
    })?;
    println!("2 threads made {LOOKUPS} lookups each beside {edits} edits, and each was right");

    // A function stays for as long as a thread holds it. Its removal waits for that thread, without
    // a lock: other edits and lookups go on.
    let function = CODE.try_read(0x1000)?;
    thread::scope(|scope| {
        let unload = scope.spawn(|| CODE.remove(0x1000..0x10b7));
        while CODE.try_read(0x1000).is_ok() {
            thread::yield_now(); // until the removal refuses readers
        }
        assert_eq!((*function, function.range()), ("parse", 0x1000..0x10b7));
        drop(function);
        let removed = unload.join().map_err(|_| "a panic")??;
        assert_eq!((removed[0].range.clone(), removed[0].payload), (0x1000..0x10b7, "parse"));
        Ok::<_, Box<dyn Error>>(())
    })?;
    assert_eq!(CODE.try_read(0x1000).err(), Some(ReadError::NotMapped { addr: 0x1000 }));
    println!("`parse` was removed when its reader had left");
    Ok(())
}
