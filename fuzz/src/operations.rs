//! Bytes as operations, on spaces and on the oracle: the comparison of the random tests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pervma::StdPlatform;

#[path = "../../core/tests/suite/mod.rs"]
#[expect(dead_code, reason = "one of its platforms is for other tests")]
mod suite;

use suite::compare::{compare, describe};
use suite::spaces::{EXCLUDING, IN_EDITS, Spaces, WAITING};

fuzz_target!(|bytes: &[u8]| {
    let (way, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let records = rest.as_chunks().0;
    if std::env::var_os("TELL").is_some() {
        eprintln!("{}", describe(records));
    }
    match way % 3 {
        0 => compare::<Spaces<StdPlatform, IN_EDITS>>(records, |_, _, _| ()),
        1 => compare::<Spaces<StdPlatform, WAITING>>(records, |_, _, _| ()),
        _ => compare::<Spaces<StdPlatform, EXCLUDING>>(records, |_, _, _| ()),
    }
});
