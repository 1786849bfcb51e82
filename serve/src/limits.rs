//! How much a client, and all of them together, may ask for.

use std::time::Duration;

/// Limits of the daemon.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Clients at a time, forked children included.
    pub clients: usize,
    /// Handshakes at a time that are not complete. One more, and the oldest is dropped.
    pub handshakes: usize,
    /// Until a handshake is complete.
    pub handshake: Duration,
    /// Bytes of a client's message.
    pub message: usize,
    /// Memory regions of a client's message.
    pub regions: usize,
    /// Reads of the source at a time that wait, of one client.
    pub reads: usize,
    /// Reads of the sources at a time that wait, of all clients.
    pub all_reads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 1024,
            handshakes: 256,
            handshake: Duration::from_secs(10),
            message: 1 << 20,
            regions: 4096,
            reads: 128,
            all_reads: 512,
        }
    }
}
