//! Bytes as a client's message, and as regions that are written as one. No message may panic, what
//! becomes of it must not depend on how it was split, and only what can be served may be accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../serve/tests/common/messages.rs"]
mod messages;

fuzz_target!(|bytes: &[u8]| messages::run(bytes));
