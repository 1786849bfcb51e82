//! Thread mode: threads that read the faults of regions and serve them.
//!
//! A thread of this kind makes no mapping change and waits for no lock: what it cannot serve now it
//! serves a little later, and goes on reading meanwhile. It owns none of its regions: while it
//! serves one it holds the read lock of the region's VMA in `SOURCES`, and a region that is being
//! dropped waits for that.
#![expect(clippy::disallowed_types, reason = "a flag that guards no memory")]

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pervma::{ReadError, ReadGuard};
use rustix::event::{EventfdFlags, eventfd};

use crate::Error;
use crate::budget::Wait;
use crate::fault::{self, Cause, Server, Verdict};
use crate::mapping::{Backing, PAGE, Poisoned, SOURCES};
use crate::signal::{SignalsBlocked, Told, send_fault};
use crate::source::Source;
use crate::sys::epoll::{Epoll, Ready};
use crate::sys::{Errno, FaultMessage, is_process};
use crate::wakeup::nap;

/// Threads that serve the faults of regions, of as many as are mapped with them
/// ([`Options::handlers`](crate::Options::handlers)): in place of threads of each region's own, for
/// many regions that are seldom touched at the same time.
///
/// A region takes one file descriptor then, in place of three, and no thread. One whose source is
/// slow keeps as many threads as it is touched by at a time from the others.
///
/// The source of a region may not touch a region of the same handlers: the thread would wait for
/// itself. It may use the copies that return errors
/// ([`Region::read_checked`](crate::Region::read_checked)), which need no thread.
///
/// A clone is the same threads. They end with the last clone, and each region that has them is one.
///
/// ```
/// use pervma_pager::{Handlers, MemorySource, Options};
///
/// let handlers = Handlers::new(2)?;
/// let regions = [1, 2, 3].map(|byte| {
///     let options = Options::new().handlers(&handlers);
///     options.map(MemorySource::new(vec![byte; 1 << 20])).unwrap()
/// });
/// let mut byte = [0];
/// regions[2].read(12_345, &mut byte);
/// assert_eq!(byte, [3]);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
#[derive(Clone)]
pub struct Handlers(Arc<Pollers>);

/// The threads. Dropping it ends them.
#[derive(Debug)]
struct Pollers {
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
    /// The numbers of the regions.
    regions: Mutex<Vec<usize>>,
    /// Faults in granules that another of the threads reads, with the numbers of these.
    shared: Mutex<Vec<(usize, Fault)>>,
    /// The process whose threads wait.
    owner: u32,
}

/// A fault of a region, which may be no more.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// The region's number.
    number: usize,
    message: FaultMessage,
}

/// What keeps a region while it is served.
type Served = ReadGuard<'static, Arc<Backing<dyn Source>>>;

/// The number of what is no region.
const STOP: u64 = u64::MAX;

impl Watch {
    fn new() -> Result<Self, Errno> {
        let watch = Self {
            epoll: Epoll::new()?,
            ready: eventfd(1, EventfdFlags::CLOEXEC)?,
            is_over: AtomicBool::new(false),
            regions: Mutex::default(),
            shared: Mutex::default(),
            owner: std::process::id(),
        };
        // A filter that refuses to wait shows here, and not when a thread waits.
        watch.epoll.wait(&mut Ready::none(), Some(Duration::ZERO))?;
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

    /// Whoever locks this or the next blocks signals, whose handlers could wait for who waits for
    /// it.
    fn regions(&self) -> MutexGuard<'_, Vec<usize>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> MutexGuard<'_, Vec<(usize, Fault)>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a fault to the handler thread that reads its granule, or has just read it: that one
    /// looks here afterwards. `false` if it has already looked, or another thread reads.
    fn share(&self, granule: usize, fault: Fault, served: &Served) -> bool {
        let mut shared = self.shared();
        // Not seen as over although it is, it is over when its thread takes this lock, after it.
        let is_taken = served.reads.takes_faults(granule);
        if is_taken {
            shared.push((granule, fault));
        }
        is_taken
    }

    /// Takes faults of a region that were left to threads which have read their granules by now.
    fn take_shared(&self, served: &Served, to: &mut Vec<Fault>) {
        let mut shared = self.shared();
        let over = shared.extract_if(.., |(granule, fault)| {
            fault.number == served.number && !served.reads.takes_faults(*granule)
        });
        to.extend(over.map(|(_, fault)| fault));
    }
}

impl Handlers {
    /// So many threads, and at least one.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] when no thread or descriptor is left for them, or a filter refuses what
    /// they wait by.
    pub fn new(threads: usize) -> Result<Self, Error> {
        let watch = Watch::new().map_err(|errno| Error::Thread(errno.into()))?;
        let mut pollers = Pollers { watch: Arc::new(watch), threads: Vec::new() };
        // A signal's handler could touch a region, for which its thread would wait.
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        for _ in 0..threads.max(1) {
            let poller = Poller::new(Arc::clone(&pollers.watch));
            let thread = thread::Builder::new().name("pervma-pager".to_owned());
            let thread = thread.spawn(move || aborting(|| poller.run())).map_err(Error::Thread)?;
            pollers.threads.push(thread);
        }
        Ok(Self(Arc::new(pollers)))
    }

    /// How many there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.threads.len()
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").field("threads", &self.threads()).finish()
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        // Where a filter refuses to tell them, they stay: a leak.
        let will_end = self.watch.stop();
        for thread in self.threads.drain(..).filter(|_| will_end) {
            // It has told of its panic, and nothing of it is used.
            let _ = thread.join();
        }
    }
}

/// A region's faults are read by handlers until this is dropped, after the region can be found no
/// more.
pub(crate) struct Attached {
    handlers: Handlers,
    backing: Arc<Backing<dyn Source>>,
}

impl Attached {
    /// For a region that can be found.
    pub(crate) fn begin(
        handlers: &Handlers,
        backing: &Arc<Backing<dyn Source>>,
    ) -> io::Result<Self> {
        let watch = &handlers.0.watch;
        let _blocked = SignalsBlocked::new()?;
        watch.epoll.add(&backing.uffd, backing.number as u64)?;
        watch.regions().push(backing.number);
        Ok(Self { handlers: handlers.clone(), backing: Arc::clone(backing) })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let (watch, number) = (&self.handlers.0.watch, self.backing.number);
        if !is_process(watch.owner) {
            // In a forked child, which has the same epoll instance, the locks may be its parent's.
            return;
        }
        // If they cannot be blocked, it goes on without.
        let _blocked = SignalsBlocked::new();
        watch.regions().retain(|&region| region != number);
        watch.shared().retain(|(_, fault)| fault.number != number);
        // Where a filter refuses it, it is away when the descriptor is closed.
        let _ = watch.epoll.remove(&self.backing.uffd);
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
    watch: Arc<Watch>,
    ready: Ready,
    /// Faults that are to be served now.
    next: Vec<Fault>,
    /// Faults that could not be served yet.
    deferred: Vec<Fault>,
    /// Faults that the bound had no room for, what they wait for, and since when.
    waiting: Vec<(Fault, Wait, Instant)>,
}

/// Why a fault could not be served yet.
enum PutOff {
    /// Something is just being changed.
    Later,
    /// The bound is reached.
    NoRoom(Wait),
}

/// So many times each region that is ready has a turn between two looks at faults that were put
/// off.
const IN_A_ROW: usize = 32;

impl Poller {
    fn new(watch: Arc<Watch>) -> Self {
        let (next, deferred, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Self { watch, ready: Ready::none(), next, deferred, waiting }
    }

    /// Ends when it is told to.
    fn run(mut self) {
        let (mut again, mut regions) = (Vec::new(), Vec::new());
        while self.wait(&mut regions) {
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
                // One of each at a time: the others are for threads that idle.
                regions.retain(|&number| self.serve_next(number));
                if regions.is_empty() || self.watch.is_over() {
                    break;
                }
            }
        }
    }

    /// Serves the next fault of a region, or puts it off; whether there was one.
    fn serve_next(&mut self, number: usize) -> bool {
        let read = match SOURCES.try_read(number) {
            Ok(served) => {
                let read = served.uffd.read_fault();
                if read.is_err() {
                    // A filter that came later: the faults cannot be read any more, and their
                    // threads would never go on. Accesses to all that is missing fail.
                    fault::poison_missing(&served);
                    nap();
                }
                read
            }
            // It has just gone, or others come and go; it is asked again if it stays.
            Err(_) => return false,
        };
        let Ok(Some(message)) = read else { return false };
        self.take_on(Fault { number, message }, false);
        true
    }

    /// Serves a fault, and what was left to this thread meanwhile.
    fn take_on(&mut self, fault: Fault, again: bool) {
        self.attempt(fault, again);
        loop {
            if let Ok(served) = SOURCES.try_read(fault.number) {
                self.watch.take_shared(&served, &mut self.next);
            }
            let Some(fault) = self.next.pop() else { return };
            self.attempt(fault, false);
        }
    }

    /// Serves a fault, or puts it off.
    fn attempt(&mut self, fault: Fault, again: bool) {
        let served = match SOURCES.try_read(fault.number) {
            Ok(served) => served,
            Err(ReadError::Locked { .. } | ReadError::Reserved { .. } | ReadError::Busy { .. }) => {
                return self.deferred.push(fault);
            }
            // The region is no more.
            Err(_) => return,
        };
        match self.serve(&served, fault, again) {
            Ok(()) => {}
            Err(PutOff::Later) => self.deferred.push(fault),
            Err(PutOff::NoRoom(wait)) => self.waiting.push((fault, wait, Instant::now())),
        }
    }

    /// Waits for faults, or until those that were put off are due, and says which regions have
    /// some; `false` when it is time to end.
    fn wait(&mut self, regions: &mut Vec<usize>) -> bool {
        const SOON: Duration = Duration::from_micros(200);
        let is_due = !(self.deferred.is_empty() && self.waiting.is_empty());
        let most = is_due.then_some(SOON);
        regions.clear();
        if self.watch.epoll.wait(&mut self.ready, most).is_ok() {
            let numbers = self.ready.numbers().filter(|&number| number != STOP);
            regions.extend(numbers.map(|number| number as usize));
        } else {
            // A filter that came later: look again and again.
            nap();
            regions.extend_from_slice(&self.watch.regions());
        }
        !self.watch.is_over()
    }

    /// Serves a fault, or says why it has to be put off.
    fn serve(&self, served: &Served, fault: Fault, again: bool) -> Result<(), PutOff> {
        let or_later = |is_done: bool| if is_done { Ok(()) } else { Err(PutOff::Later) };
        let message = &fault.message;
        let cause = if message.is_write_protected {
            Cause::WriteProtected
        } else {
            Cause::Missing { is_write: message.is_write }
        };
        let page = message.addr & !(PAGE - 1);
        match fault::serve(page, cause, again, Server::Thread) {
            Verdict::Filled { number, granule, .. } => {
                // Otherwise filling it has woken them. (Another region may be at the address by
                // now.)
                if !served.fills_single_pages() || number != served.number {
                    wake(served, granule.start, granule.len(), message);
                }
            }
            Verdict::Present { granule, .. } | Verdict::Changed { granule } => {
                wake(served, granule.start, granule.len(), message);
            }
            Verdict::Later => return Err(PutOff::Later),
            Verdict::NoRoom(wait) => return Err(PutOff::NoRoom(wait)),
            Verdict::UnderWay { granule } => {
                return or_later(self.watch.share(granule, fault, served));
            }
            Verdict::InVain => {
                // The kernel touches one page after the other.
                let is_told = is_in_system_call(message.thread) == Some(false)
                    && send_fault(message.thread, message.addr, Told::InVain);
                return or_later(is_told);
            }
            Verdict::Failed { is_refused, .. } => {
                let in_system_call = is_refused.then(|| is_in_system_call(message.thread));
                if in_system_call == Some(Some(false)) {
                    // Nothing is poisoned, so that the page can be had when others have gone.
                    return or_later(send_fault(message.thread, message.addr, Told::Failure));
                }
                // A system call can be told by poison only, which is taken back later.
                match fault::poison_at(page, in_system_call == Some(Some(true))) {
                    Some(Poisoned::ByKernel) => wake(served, page, PAGE, message),
                    // It is present by now; unless it is present, and cannot be let be written.
                    Some(Poisoned::Not) if cause != Cause::WriteProtected => {
                        wake(served, page, PAGE, message);
                    }
                    Some(_) => {
                        return or_later(send_fault(message.thread, message.addr, Told::Failure));
                    }
                    None => return Err(PutOff::Later),
                }
            }
            // It is not mapped any more: the access, repeated, ends as others do there.
            Verdict::PassOn => wake(served, page, PAGE, message),
        }
        Ok(())
    }
}

fn wake(served: &Served, addr: usize, len: usize, message: &FaultMessage) {
    if served.uffd.wake(addr, len).is_err() {
        // A filter.
        send_fault(message.thread, message.addr, Told::Again);
    }
}
