//! A watchdog that ends a test which waits forever.

use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Ends the process if it is not dropped in time.
pub(crate) struct Watchdog(#[expect(dead_code, reason = "dropped, it is a message")] Sender<()>);

/// Gives a test so many seconds, which is far more than it needs.
#[must_use]
pub(crate) fn watchdog(seconds: u64) -> Watchdog {
    let (alive, waiting) = mpsc::channel();
    thread::spawn(move || {
        if waiting.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test has not ended within {seconds} s");
            process::abort();
        }
    });
    Watchdog(alive)
}
