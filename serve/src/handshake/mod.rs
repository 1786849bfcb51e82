//! How clients arrive: each way is a module that knows its wire format, and nothing above it does.

use std::os::fd::OwnedFd;

use crate::state::Extent;

pub mod criu;
pub mod firecracker;

/// What a client has brought.
#[derive(Debug)]
pub struct Arrival {
    /// Its memory, in order of addresses, and where the bytes are in the source.
    pub extents: Vec<Extent>,
    /// Its userfaultfd, as it came: not looked at yet.
    pub userfaultfd: OwnedFd,
}
