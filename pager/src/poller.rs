//! Thread mode: threads that read a region's faults and serve them.
//!
//! A thread of this kind makes no mapping change and waits for no lock: what it cannot serve now it
//! serves a little later, and goes on reading meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::fault::{self, CHUNK, Cause, Scratch, Verdict};
use crate::mapping::{Backing, PAGE};
use crate::signal::SignalsBlocked;
use crate::source::Source;
use crate::sys::{Errno, FaultMessage};
use crate::wakeup::Wakeup;

/// The threads that serve a region. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Pollers {
    watch: Arc<Watch>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads wait for: faults, or the end.
///
/// Not `poll`, which refuses two descriptors in a process that may open none (`ulimit -n`).
#[derive(Debug)]
struct Watch {
    both: OwnedFd,
    stop: Wakeup,
}

const STOP: u64 = 1;

impl Watch {
    fn new(backing: &Backing<dyn Source>) -> Result<Self, Errno> {
        let watch =
            Self { both: epoll::create(epoll::CreateFlags::CLOEXEC)?, stop: Wakeup::new()? };
        let is_readable = epoll::EventFlags::IN;
        epoll::add(&watch.both, &backing.uffd, epoll::EventData::new_u64(0), is_readable)?;
        epoll::add(&watch.both, &watch.stop, epoll::EventData::new_u64(STOP), is_readable)?;
        Ok(watch)
    }
}

impl Pollers {
    pub(crate) fn start(backing: &Arc<Backing<dyn Source>>, threads: usize) -> io::Result<Self> {
        let watch = Arc::new(Watch::new(backing)?);
        let mut pollers = Self { watch, threads: Vec::new() };
        // A signal's handler could touch the region, for which its thread would wait.
        let _blocked = SignalsBlocked::new();
        for _ in 0..threads {
            let (backing, watch) = (Arc::clone(backing), Arc::clone(&pollers.watch));
            let buffer = vec![0; CHUNK.max(backing.page_size.bytes())];
            let thread = thread::Builder::new().name("pervma-pager".to_owned());
            let poller = Poller { backing, watch, buffer, deferred: Vec::new() };
            pollers.threads.push(thread.spawn(move || aborting(|| poller.run()))?);
        }
        Ok(pollers)
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        let ours = self.watch.stop.stop();
        for thread in self.threads.drain(..).filter(|_| ours) {
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
    watch: Arc<Watch>,
    buffer: Vec<u8>,
    /// Faults that could not be served yet.
    deferred: Vec<FaultMessage>,
}

impl Poller {
    /// Ends when it is told to; if it cannot go on, it panics, which ends the process: whoever
    /// touches the region would wait for ever.
    fn run(mut self) {
        let (mut again, mut faults) = (Vec::new(), Vec::new());
        let mut events = Vec::with_capacity(2);
        while self.wait(&mut events) {
            again.append(&mut self.deferred);
            if let Err(errno) = self.backing.uffd.read_faults(|fault| faults.push(fault)) {
                panic!("the faults of a region cannot be read: {errno}");
            }
            for fault in again.drain(..) {
                self.serve(fault, true);
            }
            for fault in faults.drain(..) {
                self.serve(fault, false);
            }
        }
    }

    /// Waits for faults, or until those that were put off are due; `false` when it is time to end.
    fn wait(&self, events: &mut Vec<epoll::Event>) -> bool {
        const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };
        let timeout = (!self.deferred.is_empty()).then_some(&SOON);
        events.clear();
        match epoll::wait(&self.watch.both, spare_capacity(events), timeout) {
            Ok(_) | Err(Errno::INTR) => events.iter().all(|event| event.data.u64() != STOP),
            Err(errno) => panic!("the faults of a region cannot be waited for: {errno}"),
        }
    }

    fn serve(&mut self, fault: FaultMessage, again: bool) {
        let cause = if fault.is_write_protected {
            Cause::WriteProtected
        } else {
            Cause::Missing { is_write: fault.is_write }
        };
        let page = fault.addr & !(PAGE - 1);
        match fault::serve(page, cause, again, Scratch::Given(&mut self.buffer)) {
            Verdict::Filled { number, granule } => {
                // Otherwise filling it has woken them. (Another region may be at the address by now.)
                if !self.backing.fills_single_pages() || number != self.backing.number {
                    self.wake(granule.start, granule.len());
                }
            }
            Verdict::There { granule, .. } | Verdict::Changed { granule } => {
                self.wake(granule.start, granule.len());
            }
            Verdict::Later => self.deferred.push(fault),
            Verdict::Failed { for_want_of_room, .. } => {
                if fault::poison_at(page, for_want_of_room) {
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
