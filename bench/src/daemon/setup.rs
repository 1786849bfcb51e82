//! What the benchmarks of the daemon have in common.

use std::cell::RefCell;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pervma_pager::Source;
use pervma_serve::state::Extent;
use pervma_serve::{ClientId, Failure, Notice, Options, Pager};

use super::client::Memory;

/// How long what spins looks for the next fault before it sleeps.
pub(super) const SPIN: Duration = Duration::from_micros(50);

/// Starts a pager of pervma's.
pub(super) fn start(options: Options) -> Result<Pager, Box<dyn Error>> {
    Ok(options.start(|notice| {
        if let Notice::Failed { client, failure } = notice
            && failure != Failure::Stopped
        {
            eprintln!("pervma-bench: client {client} is not served any more: {failure}");
        }
    })?)
}

/// Has a client's memory served, with the source's bytes from the start on.
pub(super) fn add(
    pager: &Pager,
    (memory, userfaultfd): (Memory, OwnedFd),
    source: Arc<dyn Source>,
) -> Result<ClientId, Box<dyn Error>> {
    let (start, len) = (memory.start as u64, memory.len as u64);
    let content = Extent::SOURCE;
    let extent = Extent { start, len, offset: 0, page_size: 4096, content };
    Ok(pager.add(userfaultfd, &[extent], source)?)
}

/// The first error of many turns.
#[derive(Default)]
pub(super) struct Errors(RefCell<Option<Box<dyn Error>>>);

impl Errors {
    /// The measures of a turn; what are no numbers where it failed.
    pub(super) fn measures(
        &self,
        turn: impl FnOnce() -> Result<Vec<f64>, Box<dyn Error>>,
    ) -> Vec<f64> {
        if self.0.borrow().is_some() {
            return Vec::new();
        }
        turn().unwrap_or_else(|error| {
            self.0.replace(Some(error));
            Vec::new()
        })
    }

    pub(super) fn first(self) -> Result<(), Box<dyn Error>> {
        self.0.into_inner().map_or(Ok(()), Err)
    }
}

/// CPU time of this process, where the handlers run.
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
