//! Page faults of other processes, such as microVMs, served in parallel through userfaultfd.
#![deny(unsafe_code)]

mod client;
pub mod exec_helper;
mod failure;
pub mod handshake;
mod limits;
mod map;
mod pager;
pub mod peer;
mod reads;
pub mod sandbox;
mod server;
mod source;
pub mod state;
mod stats;
mod threads;
mod turns;
pub mod working_set;

pub use client::{ClientError, ClientId};
pub use failure::Failure;
pub use limits::Limits;
pub use pager::{Notice, Options, Pager};
pub use server::{Ended, Listen, OnFailure, OnStop, Server, Tell};
pub use source::MemoryFile;
pub use stats::{Latency, Stats};
