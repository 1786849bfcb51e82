//! Thread mode: threads that read a region's faults and serve them.
//!
//! A thread of this kind makes no mapping change and waits for no lock: what it cannot serve now it
//! serves a little later, and goes on reading meanwhile.
#![expect(clippy::disallowed_types, reason = "a flag that guards no memory")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::budget::Wait;
use crate::fault::{self, Cause, Server, Verdict};
use crate::mapping::{Backing, PAGE, Poisoned};
use crate::reads::Reads;
use crate::signal::{SignalsBlocked, send_fault};
use crate::source::Source;
use crate::sys::epoll::Epoll;
use crate::sys::{Errno, FaultMessage, is_process};
use crate::wakeup::nap;

/// The threads that serve a region. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Pollers {
    watch: Arc<Watch>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads wait for: faults, or the end.
#[derive(Debug)]
struct Watch {
    epoll: Epoll,
    /// Can be read at any time, and is waited for when it is time to end.
    ready: OwnedFd,
    is_over: AtomicBool,
    /// Faults in granules that another of the threads reads, with the numbers of these.
    shared: Mutex<Vec<(usize, FaultMessage)>>,
    /// The process whose threads wait.
    owner: u32,
}

const FAULTS: usize = 0;
const STOP: usize = 1;

impl Watch {
    fn new(backing: &Backing<dyn Source>) -> Result<Self, Errno> {
        let watch = Self {
            epoll: Epoll::new()?,
            ready: eventfd(1, EventfdFlags::CLOEXEC)?,
            is_over: AtomicBool::new(false),
            shared: Mutex::default(),
            owner: std::process::id(),
        };
        watch.epoll.add(&backing.uffd, FAULTS)?;
        // A filter that refuses to wait shows here, and not when a thread waits.
        watch.epoll.wait(Some(Duration::ZERO))?;
        Ok(watch)
    }

    /// Tells the threads to end; whether they will. Those of a forked child's parent are not told.
    fn stop(&self) -> bool {
        if !is_process(self.owner) {
            return false;
        }
        // RELAXED: they look again and again, or are woken by the kernel.
        self.is_over.store(true, Relaxed);
        self.epoll.add(&self.ready, STOP).is_ok()
    }

    fn is_over(&self) -> bool {
        // RELAXED: as above.
        self.is_over.load(Relaxed)
    }

    /// Leaves a fault to the handler thread that reads its granule, or has just read it: that one
    /// looks here afterwards. `false` if it has already looked, or another thread reads.
    fn share(&self, granule: usize, fault: FaultMessage, reads: &Reads) -> bool {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        // Not seen as over although it is, it is over when its thread takes this lock, after it.
        let is_taken = reads.takes_faults(granule);
        if is_taken {
            shared.push((granule, fault));
        }
        is_taken
    }

    /// Takes faults that were left to threads which have read their granules by now.
    fn take_shared(&self, reads: &Reads, to: &mut Vec<FaultMessage>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let over = shared.extract_if(.., |(granule, _)| !reads.takes_faults(*granule));
        to.extend(over.map(|(_, fault)| fault));
    }
}

impl Pollers {
    pub(crate) fn start(backing: &Arc<Backing<dyn Source>>, threads: usize) -> io::Result<Self> {
        let watch = Arc::new(Watch::new(backing)?);
        let mut pollers = Self { watch, threads: Vec::new() };
        // A signal's handler could touch the region, for which its thread would wait.
        let _blocked = SignalsBlocked::new()?;
        for _ in 0..threads {
            let (backing, watch) = (Arc::clone(backing), Arc::clone(&pollers.watch));
            let thread = thread::Builder::new().name("pervma-pager".to_owned());
            let poller = Poller {
                backing,
                watch,
                next: Vec::new(),
                deferred: Vec::new(),
                waiting: Vec::new(),
            };
            pollers.threads.push(thread.spawn(move || aborting(|| poller.run()))?);
        }
        Ok(pollers)
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        // Where a filter refuses to tell them, they stay, with what they serve: a leak.
        let will_end = self.watch.stop();
        for thread in self.threads.drain(..).filter(|_| will_end) {
            // It has told of its panic, and nothing of it is used.
            let _ = thread.join();
        }
    }
}

/// Whether a thread of this process that sleeps is in a system call, as the kernel tells.
fn is_in_system_call(thread: u32) -> Option<bool> {
    let mut file = File::open(format!("/proc/self/task/{thread}/syscall")).ok()?;
    let mut start = [0; 2];
    file.read_exact(&mut start).ok()?;
    match start {
        [b'-', b'1'] => Some(false),
        [b'0'..=b'9', _] => Some(true),
        _ => None,
    }
}

/// Runs what a thread of a region does. If it panics, in a source for example, the process ends:
/// no other thread would serve the threads that wait.
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
    /// Faults that are to be served now.
    next: Vec<FaultMessage>,
    /// Faults that could not be served yet.
    deferred: Vec<FaultMessage>,
    /// Faults that the bound had no room for, what they wait for, and since when.
    waiting: Vec<(FaultMessage, Wait, Instant)>,
}

/// Why a fault could not be served yet.
enum PutOff {
    /// Something is just being changed.
    Later,
    /// The bound is reached.
    NoRoom(Wait),
}

/// So many faults are served between two looks at those that were put off.
const IN_A_ROW: usize = 32;

impl Poller {
    /// Ends when it is told to.
    fn run(mut self) {
        let mut again = Vec::new();
        while self.wait() {
            again.append(&mut self.deferred);
            let have_room = self.waiting.extract_if(.., |(_, wait, since)| {
                // Room that others did not take is not told of.
                wait.is_over() || since.elapsed() > Duration::from_millis(10)
            });
            again.extend(have_room.map(|(fault, ..)| fault));
            for fault in again.drain(..) {
                self.take_on(fault, true);
            }
            for _ in 0..IN_A_ROW {
                // One at a time: the others are for threads that idle.
                match self.backing.uffd.read_fault() {
                    Ok(Some(fault)) => self.take_on(fault, false),
                    Ok(None) => break,
                    Err(_) => return self.fail_closed(),
                }
                if self.watch.is_over() {
                    return;
                }
            }
        }
    }

    /// Serves a fault, and what was left to this thread meanwhile.
    fn take_on(&mut self, fault: FaultMessage, again: bool) {
        self.attempt(fault, again);
        loop {
            self.watch.take_shared(&self.backing.reads, &mut self.next);
            let Some(fault) = self.next.pop() else { return };
            self.attempt(fault, false);
        }
    }

    /// Serves a fault, or puts it off.
    fn attempt(&mut self, fault: FaultMessage, again: bool) {
        match self.serve(&fault, again) {
            Ok(()) => {}
            Err(PutOff::Later) => self.deferred.push(fault),
            Err(PutOff::NoRoom(wait)) => self.waiting.push((fault, wait, Instant::now())),
        }
    }

    /// Waits for faults, or until those that were put off are due; `false` when it is time to end.
    fn wait(&self) -> bool {
        const SOON: Duration = Duration::from_micros(200);
        let is_due = !(self.deferred.is_empty() && self.waiting.is_empty());
        let most = is_due.then_some(SOON);
        if self.watch.epoll.wait(most).is_err() {
            // A filter that came later: look again and again.
            nap();
        }
        !self.watch.is_over()
    }

    /// Serves a fault, or says why it has to be put off.
    fn serve(&self, fault: &FaultMessage, again: bool) -> Result<(), PutOff> {
        let or_later = |is_done: bool| if is_done { Ok(()) } else { Err(PutOff::Later) };
        let cause = if fault.is_write_protected {
            Cause::WriteProtected
        } else {
            Cause::Missing { is_write: fault.is_write }
        };
        let page = fault.addr & !(PAGE - 1);
        match fault::serve(page, cause, again, Server::Thread) {
            Verdict::Filled { number, granule, .. } => {
                // Otherwise filling it has woken them. (Another region may be at the address by
                // now.)
                if !self.backing.fills_single_pages() || number != self.backing.number {
                    self.wake(granule.start, granule.len(), fault);
                }
            }
            Verdict::Present { granule, .. } | Verdict::Changed { granule } => {
                self.wake(granule.start, granule.len(), fault);
            }
            Verdict::Later => return Err(PutOff::Later),
            Verdict::NoRoom(wait) => return Err(PutOff::NoRoom(wait)),
            Verdict::UnderWay { granule } => {
                return or_later(self.watch.share(granule, *fault, &self.backing.reads));
            }
            Verdict::Failed { is_refused, .. } => {
                let in_system_call = is_refused.then(|| is_in_system_call(fault.thread));
                if in_system_call == Some(Some(false)) {
                    // Nothing is poisoned, so that the page can be had when others have gone.
                    return or_later(send_fault(fault.thread, fault.addr, true));
                }
                // A system call can be told by poison only, which is taken back later.
                match fault::poison_at(page, in_system_call == Some(Some(true))) {
                    Some(Poisoned::ByKernel) => self.wake(page, PAGE, fault),
                    // It is present by now; unless it is present, and cannot be let be written.
                    Some(Poisoned::Not) if cause != Cause::WriteProtected => {
                        self.wake(page, PAGE, fault);
                    }
                    Some(_) => return or_later(send_fault(fault.thread, fault.addr, true)),
                    None => return Err(PutOff::Later),
                }
            }
            // It is not mapped any more: the access, repeated, ends as others do there.
            Verdict::PassOn => self.wake(page, PAGE, fault),
        }
        Ok(())
    }

    fn wake(&self, addr: usize, len: usize, fault: &FaultMessage) {
        if self.backing.uffd.wake(addr, len).is_err() {
            // A filter.
            send_fault(fault.thread, fault.addr, false);
        }
    }

    /// Fails the accesses to all that is missing, until it is told to end: the faults cannot be
    /// read any more, because of a filter that came later, and their threads would never go on.
    fn fail_closed(&self) {
        while !self.watch.is_over() {
            fault::poison_missing(&self.backing);
            nap();
        }
    }
}
