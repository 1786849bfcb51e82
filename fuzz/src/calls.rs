//! Bytes as arguments of Linux's mapping calls. No call may panic, counts must be right, and in
//! strict mode a call that fails changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../linux/tests/common/calls.rs"]
mod calls;

fuzz_target!(|bytes: &[u8]| calls::run(bytes));
