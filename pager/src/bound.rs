//! Bounds that regions share.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLockWriteGuard};
use std::thread::{self, JoinHandle};

use crate::Error;
use crate::budget::{Budget, Share};
use crate::evict::{self, Member, Members};
use crate::failure::WriteBackFailure;
use crate::mapping::{Backing, PAGE, Place};
use crate::poller::aborting;
use crate::records::Clock;
use crate::signal::SignalsBlocked;
use crate::source::Source;
use crate::writer::Writer;

/// A bound of how many bytes may be present of all regions together that are mapped with it
/// ([`Options::bound`](crate::Options::bound)).
///
/// A thread gives back what is clean of all of them, so that a region that is used much can have
/// what another is not using. What was filled long ago goes first, whichever region it is of. Of a
/// source that is read, up to a fifth of the bound is for bytes of pages that have gone: such a
/// page comes back at the cost of a fault and is not read again, and by that is known to be used.
/// It stays longer than what is not, as long as there is other. So what is touched once, in a scan
/// for example, does not push out what is used often ([which pages go](crate::limits)).
///
/// A clone is the same bound. It ends with its last clone, and each region that has it is one.
///
/// ```
/// use pervma_pager::{Bound, MemorySource, Options};
///
/// let bound = Bound::new(1 << 20)?;
/// let source = || MemorySource::new(vec![7; 10 << 20]);
/// let first = Options::new().bound(&bound).map(source())?;
/// let second = Options::new().bound(&bound).map(source())?;
/// let mut bytes = vec![0; 10 << 20];
/// first.read(0, &mut bytes);
/// second.read(0, &mut bytes);
/// assert!(bound.most_resident() <= bound.bytes());
/// # Ok::<(), pervma_pager::Error>(())
/// ```
#[derive(Clone)]
pub struct Bound(Arc<Evictor>);

/// The thread that keeps a bound. Dropping it ends the thread.
struct Evictor {
    shared: Arc<Shared>,
    /// Started with the first region.
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    budget: Arc<Budget>,
    members: Members,
    clock: Arc<Clock>,
}

impl Bound {
    /// Of so many bytes, which are rounded down to whole pages. Pages begin to go when all but a
    /// 64th of it is present, and go until all but a 32nd is; of less than 2 MiB more is left, of
    /// more than 256 MiB no more than 4 MiB and 8 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::Resident`] when it is less than four pages; when memory runs out.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        let marks = Budget::usual_watermarks(bytes / PAGE);
        Self::with_watermarks(bytes, marks.start * PAGE, marks.end * PAGE)
    }

    /// Of so many bytes, with watermarks: pages begin to go when more than `high` bytes are
    /// present, and as many go at a time as leave `low`. An access waits only if the bound itself
    /// is reached before they have gone.
    ///
    /// A lower `high` is for accesses that come in bursts, or for pages that take long to be
    /// written; a `low` that is near to it keeps more pages present, and gives them back a few at a
    /// time.
    ///
    /// # Errors
    ///
    /// [`Error::Watermarks`] when `low` is not below `high` or less than two pages, or `high` is
    /// above the bound (and when a region is mapped of which it is less than two granules);
    /// [`Error::Resident`] when the bound is less than four pages; when memory runs out.
    pub fn with_watermarks(bytes: usize, low: usize, high: usize) -> Result<Self, Error> {
        let least = 4 * PAGE;
        if bytes < least {
            return Err(Error::Resident { bytes, least });
        }
        if low / PAGE >= high / PAGE || high > bytes {
            return Err(Error::Watermarks { low, high, bound: bytes });
        }
        let budget = Budget::new(bytes / PAGE, low / PAGE..high / PAGE);
        let budget = Arc::new(budget.map_err(|errno| Error::Memory { bytes, errno })?);
        let shared = Shared { budget, members: Members::default(), clock: Arc::default() };
        let thread = Mutex::default();
        let bound = Self(Arc::new(Evictor { shared: Arc::new(shared), thread }));
        bound.check_watermarks(PAGE)?;
        Ok(bound)
    }

    /// Fails if a region of that granule could not go on between the watermarks: what it has just
    /// filled would go at once.
    pub(crate) fn check_watermarks(&self, granule: usize) -> Result<(), Error> {
        let marks = self.0.shared.budget.watermarks();
        let [low, high] = [marks.start, marks.end].map(|pages| pages * PAGE);
        if low < granule.saturating_mul(2) {
            return Err(Error::Watermarks { low, high, bound: self.bytes() });
        }
        Ok(())
    }

    /// How many bytes may be present.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.shared.budget.pages() * PAGE
    }

    /// The bytes that are present now, of all regions that have it, and those that are kept of
    /// pages that have gone; faults under way included.
    #[must_use]
    pub fn resident(&self) -> usize {
        self.0.shared.budget.resident() * PAGE
    }

    /// The most bytes that were present at a time.
    #[must_use]
    pub fn most_resident(&self) -> usize {
        self.0.shared.budget.most_resident() * PAGE
    }

    /// What a region has of it.
    pub(crate) fn share(&self) -> Share {
        Share::of(Arc::clone(&self.0.shared.budget))
    }

    /// The time of all regions that have it.
    pub(crate) fn clock(&self) -> Arc<Clock> {
        Arc::clone(&self.0.shared.clock)
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("bytes", &self.bytes())
            .field("resident", &self.resident())
            .finish_non_exhaustive()
    }
}

impl Evictor {
    /// The regions, none of which the evictor works in. The caller blocks signals: their handlers
    /// could touch a region, and wait for the evictor.
    fn members(&self) -> RwLockWriteGuard<'_, Vec<Arc<Member>>> {
        self.shared.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread if it does not run.
    fn start(&self) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let work = move || evict::run(&shared.budget, &shared.members);
            *thread = Some(spawn("pervma-evictor", work)?);
        }
        Ok(())
    }
}

impl Drop for Evictor {
    fn drop(&mut self) {
        // Not in a forked child: the thread is its parent's.
        if self.shared.budget.wakeup.stop()
            && let Some(thread) = self.thread.get_mut().ok().and_then(Option::take)
        {
            // It has told of its panic, and nothing of it is used.
            let _ = thread.join();
        }
    }
}

/// Starts a thread that takes no signals: their handlers could touch a region, whose pages it gives
/// back.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let _blocked = SignalsBlocked::new()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || aborting(work))
}

/// A region's place among those of its bound, with the thread that writes its pages. Dropping it
/// ends both: nothing of the region is given back any more.
pub(crate) struct Membership {
    bound: Bound,
    member: Arc<Member>,
    writer: Option<JoinHandle<()>>,
}

impl Membership {
    pub(crate) fn begin(
        bound: &Bound,
        place: &Arc<Place>,
        backing: &Arc<Backing<dyn Source>>,
    ) -> io::Result<Self> {
        bound.0.start()?;
        let writer = backing.is_tracked.then(Arc::<Writer>::default);
        let thread = writer.clone().map(|writer| {
            let (place, backing) = (Arc::clone(place), Arc::clone(backing));
            spawn("pervma-writer", move || writer.run(&place, &backing))
        });
        let (place, backing) = (Arc::clone(place), Arc::clone(backing));
        let member = Arc::new(Member { place, backing, writer });
        // From here on, what fails is undone by its drop.
        let mut membership = Self { bound: bound.clone(), member, writer: None };
        membership.writer = thread.transpose()?;
        let _blocked = SignalsBlocked::new()?;
        membership.bound.0.members().push(Arc::clone(&membership.member));
        Ok(membership)
    }

    /// The last failure of a write-back that the bound needed, even if it is over by now.
    pub(crate) fn last_failure(&self) -> Option<WriteBackFailure> {
        self.member.writer.as_ref().and_then(|writer| writer.last_failure())
    }

    fn is_of_this_process(&self) -> bool {
        self.bound.0.shared.budget.wakeup.is_of_this_process()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            // In a forked child: the threads are its parent's, and so may be the locks.
            return;
        }
        // If they cannot be blocked, it goes on without.
        let blocked = SignalsBlocked::new();
        let mut members = self.bound.0.members();
        members.retain(|member| !Arc::ptr_eq(member, &self.member));
        drop(members);
        drop(blocked);
        if let Some(writer) = &self.member.writer {
            writer.stop();
        }
        if let Some(thread) = self.writer.take() {
            let _ = thread.join();
        }
        let _blocked = SignalsBlocked::new();
        let members = self.bound.0.members();
        // Only now: until here the writer has kept some of what it gave back.
        if members.is_empty() {
            self.bound.0.shared.budget.keep_none();
        }
    }
}
