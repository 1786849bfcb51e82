//! A library that pages, to be loaded at run time: for the test that unloads it.
#![expect(unsafe_code, reason = "exports a function to C")]

use pervma_pager::{FrozenRegion, MemorySource};

/// A byte of a region, which is there only for the call; 0 if none could be mapped.
#[unsafe(no_mangle)]
pub extern "C" fn paged_byte() -> u8 {
    FrozenRegion::map(MemorySource::new(vec![7; 8192])).map_or(0, |region| region[5000])
}
