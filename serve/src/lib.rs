//! Page faults of other processes, such as microVMs, served in parallel through userfaultfd.
#![deny(unsafe_code)]

mod client;
mod failure;
pub mod exec_helper;
pub mod handshake;
mod limits;
mod map;
mod pager;
mod reads;
mod source;
pub mod peer;
pub mod sandbox;
pub mod state;
mod stats;
mod threads;

pub use client::{ClientError, ClientId};
pub use failure::Failure;
pub use limits::Limits;
pub use pager::{Notice, Options, Pager};
pub use source::MemoryFile;
pub use stats::{Latency, Stats};
