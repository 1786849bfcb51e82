//! The address space and the pager for C and C++: what `include/pervma.h` declares.
//!
//! A layer without rules of its own over `pervma` and `pervma-pager`, in which each function does
//! the same: looks at its arguments ([`boundary`], [`handles`]), calls the Rust interface, and
//! makes a code of the result ([`status`]). The header is made of this source by cbindgen
//! (`.ci/header`): doc comments of public items are written for its readers.
#![deny(unsafe_code)]
// The header says at its top what holds for the arguments of all functions.
#![expect(clippy::missing_safety_doc, reason = "the header says it once, for all functions")]

// In the order of the header.
pub mod status;

pub mod payload;

pub mod space;

pub mod lookup;

pub mod exclusion;

pub mod fork;

pub mod pager;

pub mod umap;

// Nothing of these is in it.
mod boundary;
mod handles;
mod thread;
