//! Page faults of other processes, such as microVMs, served in parallel through userfaultfd.
#![deny(unsafe_code)]

mod blame;
mod client;
mod connection;
pub mod exec_helper;
mod failure;
pub mod handshake;
pub mod images;
mod keeper;
mod limits;
mod map;
mod noted;
mod notices;
mod pager;
pub mod peer;
mod reads;
mod restores;
pub mod sandbox;
mod server;
mod socket;
mod source;
pub mod state;
mod stats;
pub mod steps;
mod stop;
mod take_over;
mod threads;
mod turns;
mod untold;
pub mod working_set;

pub use client::{ClientError, ClientId};
pub use failure::Failure;
pub use keeper::{Keeper, Kept};
pub use limits::Limits;
pub use pager::{Notice, Options, Pager};
pub use restores::{Restored, Restores};
pub use server::{Ended, FailedClient, Listen, OnFailure, OnStop, Server, Tell};
pub use source::MemoryFile;
pub use stats::{Latency, Stats};
pub use take_over::{TakeOverError, TakeOverSocket, TakenOver};
