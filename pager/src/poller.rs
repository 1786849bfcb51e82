//! Thread mode: threads that read a region's faults and serve them.
//!
//! A thread of this kind makes no mapping change and waits for no lock: what it cannot serve now it
//! serves a little later, and goes on reading meanwhile.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fault::{self, CHUNK, Cause, Scratch, Verdict};
use crate::mapping::{Backing, PAGE};
use crate::signal::SignalsBlocked;
use crate::source::Source;
use crate::sys::{Errno, FaultMessage};
use crate::wakeup::Wakeup;

/// The threads that serve a region. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Pollers {
    stop: Arc<Wakeup>,
    threads: Vec<JoinHandle<()>>,
}

impl Pollers {
    pub(crate) fn start(backing: &Arc<Backing<dyn Source>>, threads: usize) -> io::Result<Self> {
        let stop = Arc::new(Wakeup::new()?);
        let mut pollers = Self { stop, threads: Vec::new() };
        // A signal's handler could touch the region, for which its thread would wait.
        let _blocked = SignalsBlocked::new();
        for _ in 0..threads {
            let (backing, stop) = (Arc::clone(backing), Arc::clone(&pollers.stop));
            let buffer = vec![0; CHUNK.max(backing.page_size.bytes())];
            let thread = thread::Builder::new().name("pervma-pager".to_owned());
            let poller = Poller { backing, buffer, deferred: Vec::new() };
            pollers.threads.push(thread.spawn(move || aborting(|| poller.run(&stop)))?);
        }
        Ok(pollers)
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            // It has told of its panic, and nothing of it is used.
            let _ = thread.join();
        }
    }
}

/// Runs what a thread of a region does. If it panics, in a source for example, the process ends:
/// nobody else would serve those who wait.
pub(crate) fn aborting(work: impl FnOnce()) {
    struct Aborting;
    impl Drop for Aborting {
        fn drop(&mut self) {
            if thread::panicking() {
                std::process::abort();
            }
        }
    }
    let _aborting = Aborting;
    work();
}

struct Poller {
    backing: Arc<Backing<dyn Source>>,
    buffer: Vec<u8>,
    /// Faults that could not be served yet.
    deferred: Vec<FaultMessage>,
}

impl Poller {
    fn run(mut self, stop: &Wakeup) {
        let mut faults = Vec::new();
        while self.wait(stop) {
            faults.append(&mut self.deferred);
            if self.backing.uffd.read_faults(|fault| faults.push(fault)).is_err() {
                // Nothing can be read from it any more: it is about to be closed.
                return;
            }
            for fault in faults.drain(..) {
                self.serve(fault);
            }
        }
    }

    /// Waits for faults, or until those that were put off are due; `false` when it is time to end.
    fn wait(&self, stop: &Wakeup) -> bool {
        const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };
        let timeout = (!self.deferred.is_empty()).then_some(&SOON);
        let mut both =
            [PollFd::new(&self.backing.uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut both, timeout) {
            Ok(_) | Err(Errno::INTR) => both[1].revents().is_empty(),
            Err(_) => false,
        }
    }

    fn serve(&mut self, fault: FaultMessage) {
        let cause = if fault.is_write_protected {
            Cause::WriteProtected
        } else {
            Cause::Missing { is_write: fault.is_write }
        };
        let page = fault.addr & !(PAGE - 1);
        match fault::serve(page, cause, Scratch::Given(&mut self.buffer)) {
            Verdict::Filled { number, is_new, granule, .. } => {
                // Otherwise filling it has woken them. (Another region may be at the address by now.)
                let is_other = number != self.backing.number;
                if !is_new || !self.backing.fills_single_pages() || is_other {
                    self.wake(granule.start, granule.len());
                }
            }
            Verdict::Later => self.deferred.push(fault),
            Verdict::Failed { .. } => {
                if fault::poison_at(page) {
                    self.wake(page, PAGE);
                } else {
                    self.deferred.push(fault);
                }
            }
            // It is not mapped any more: the access, repeated, ends as others do there.
            Verdict::PassOn => self.wake(page, PAGE),
        }
    }

    fn wake(&self, addr: usize, len: usize) {
        // Fails only for what is no page.
        let _ = self.backing.uffd.wake(addr, len);
    }
}
