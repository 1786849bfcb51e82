//! Page faults of other processes, such as microVMs, served in parallel through userfaultfd.
#![deny(unsafe_code)]

pub mod handshake;
mod limits;
pub mod state;

pub use limits::Limits;
