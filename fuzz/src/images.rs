//! Bytes as files of a checkpoint's images, as entries of pagemaps, and as records. No bytes may
//! panic, what is accepted can be read, and each page has the bytes that the images say.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../serve/tests/common/any_images.rs"]
mod any_images;
#[path = "../../serve/tests/common/images.rs"]
mod images;

fuzz_target!(|bytes: &[u8]| any_images::run(bytes));
