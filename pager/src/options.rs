//! How a region is mapped.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::bound::Bound;
use crate::buffers::Buffers;
use crate::failure::{OnFailure, OnWriteBackFailure, WriteBackFailure};
use crate::mapping::{Backing, PAGE};
use crate::poller::Handlers;
use crate::reads::Reads;
use crate::region::Region;
use crate::source::{SignalSafe, Source};
use crate::staging::Staging;
use crate::stats::Counters;
use crate::sys::{At, PageSize, Userfaultfd, system_page_size};
use crate::{Error, signal};

/// Faults are served in the signal handler, by the thread that faults: the default.
#[derive(Clone, Copy, Debug)]
pub enum InSignal {}

/// Faults are served by threads of the region.
#[derive(Clone, Copy, Debug)]
pub enum InThread {}

/// Which sources a way of serving takes.
pub trait Serves<S>: sealed::Sealed {}

impl<S: SignalSafe> Serves<S> for InSignal {}
impl<S: Source> Serves<S> for InThread {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::InSignal {}
    impl Sealed for super::InThread {}
}

/// How a region is mapped: who serves its faults, and what else it can do.
///
/// ```
/// use pervma_pager::{MemorySource, Options};
///
/// let region = Options::new()
///     .granule(64 << 10) // one fault fills 16 pages
///     .resident(1 << 20) // and at most 1 MiB is present at a time
///     .map(MemorySource::new(vec![7; 10 << 20]))?;
/// let mut bytes = [0; 3];
/// region.read(5 << 20, &mut bytes);
/// assert_eq!(bytes, [7; 3]);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options<M = InSignal> {
    granule: Option<usize>,
    page_size: PageSize,
    is_writable: bool,
    capacity: usize,
    at: Option<At>,
    resident: Option<usize>,
    bound: Option<Bound>,
    on_failure: OnFailure,
    on_write_back_failure: Hook,
    handlers: Threads,
    mode: PhantomData<M>,
}

/// Whose threads serve faults.
#[derive(Clone, Debug)]
enum Threads {
    /// Signal mode.
    None,
    /// So many of the region's own.
    Own(usize),
    Shared(Handlers),
}

/// Who is told of pages that cannot be written back.
#[derive(Clone, Default)]
struct Hook(Option<OnWriteBackFailure>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some" } else { "None" })
    }
}

impl Default for Options<InSignal> {
    fn default() -> Self {
        Self::new()
    }
}

impl Options<InSignal> {
    /// Faults are served in the signal handler, on the thread that faults. It needs no privilege,
    /// and is several times as fast; but a system call that touches a missing page fails
    /// with `EFAULT`.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            granule: None,
            page_size: PageSize::Small,
            is_writable: false,
            capacity: 0,
            at: None,
            resident: None,
            bound: None,
            on_failure: OnFailure::pass_on(),
            on_write_back_failure: Hook(None),
            handlers: Threads::None,
            mode: PhantomData,
        }
    }
}

impl<M> Options<M> {
    /// Faults are served by so many threads of the region (at least one, also for 0; for threads
    /// that several regions share there are [`handlers`](Self::handlers)): for memory
    /// that system calls touch, and for sources that are not [`SignalSafe`]. More than one are for
    /// sources that are slow. It needs Linux 6.6.
    ///
    /// Without privilege the kernel lets them serve accesses of user code only;
    /// [`Region::serves_system_calls`] tells. Privilege is access to `/dev/userfaultfd`,
    /// `CAP_SYS_PTRACE`, or `vm.unprivileged_userfaultfd=1`.
    ///
    /// ```
    /// use pervma_pager::{MemorySource, Options};
    ///
    /// let options = Options::new().granule(64 << 10).handler_threads(2);
    /// let region = options.map(MemorySource::new(vec![7; 1 << 20]))?;
    /// let mut byte = [0];
    /// region.read(12_345, &mut byte); // served by one of the two
    /// assert_eq!(byte, [7]);
    /// # Ok::<(), pervma_pager::Error>(())
    /// ```
    #[must_use]
    pub fn handler_threads(self, threads: usize) -> Options<InThread> {
        self.served_by(Threads::Own(threads.max(1)))
    }

    /// Faults are served by threads that the region shares with all others that are mapped with
    /// them, in place of its own. Otherwise as [`handler_threads`](Self::handler_threads).
    #[must_use]
    pub fn handlers(self, handlers: &Handlers) -> Options<InThread> {
        self.served_by(Threads::Shared(handlers.clone()))
    }

    fn served_by(self, handlers: Threads) -> Options<InThread> {
        Options {
            granule: self.granule,
            page_size: self.page_size,
            is_writable: self.is_writable,
            capacity: self.capacity,
            at: self.at,
            resident: self.resident,
            bound: self.bound,
            on_failure: self.on_failure,
            on_write_back_failure: self.on_write_back_failure,
            handlers,
            mode: PhantomData,
        }
    }

    /// A fault fills the aligned part of so many bytes that it is in, as far as that is missing. By
    /// default, a page. A power of two.
    ///
    /// A larger granule is fewer faults for the same bytes, and more bytes for the same faults: the
    /// strongest lever there is, if neighbours are wanted too.
    ///
    /// A region that is not smaller begins at a multiple of it, unless an
    /// [address](Self::at) is given. From 2 MiB on, what is read for a region that is
    /// [frozen](Region::freeze) comes in transparent huge pages: see [`limits`](crate::limits).
    #[must_use]
    pub const fn granule(mut self, bytes: usize) -> Self {
        self.granule = Some(bytes);
        self
    }

    /// The memory is made of huge pages of hugetlbfs (2 MiB), and a granule is at least that. (For
    /// transparent ones, which need no pool, see [`granule`](Self::granule).) The
    /// system must have some free: `vm.nr_hugepages`. A fault that finds none fails.
    ///
    /// In signal mode it needs a source whose bytes are in memory ([`Source::bytes`]).
    #[must_use]
    pub const fn huge_pages(mut self) -> Self {
        self.page_size = PageSize::Huge;
        self
    }

    /// The region can be written, and knows which pages were
    /// ([`written`](Region::written)): the first write to a page is a fault of its own.
    #[must_use]
    pub const fn writable(mut self) -> Self {
        self.is_writable = true;
        self
    }

    /// Addresses are reserved for so many bytes, so that the region can become as long in its
    /// place ([`resize`](Region::resize)). By default, and at least, for the source's present
    /// size.
    #[must_use]
    pub const fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// The region begins at an address, a multiple of the page size ([`Error::AddressesTaken`] if
    /// something is mapped there that is not to be replaced). By default the kernel chooses, and so
    /// it does for a region that is [moved](Region::relocate).
    ///
    /// ```
    /// use pervma_pager::sys::At;
    /// use pervma_pager::{MemorySource, Options};
    ///
    /// let options = Options::new().at(At::free(0x6000_0000_0000));
    /// let region = options.map(MemorySource::new(vec![7; 8192]))?;
    /// assert_eq!(region.as_ptr().addr(), 0x6000_0000_0000);
    /// # Ok::<(), pervma_pager::Error>(())
    /// ```
    #[must_use]
    pub const fn at(mut self, at: At) -> Self {
        self.at = Some(at);
        self
    }

    /// At most so many bytes are present at a time. A thread gives back what was filled longest
    /// ago, but for pages that are known to be used, as long as there are others
    /// ([`Bound`]); another thread, if the region is writable, writes to the source what was
    /// written. For regions that share a bound, and for watermarks, there is
    /// [`bound`](Self::bound).
    ///
    /// Pages are counted, and from 8 MiB on the [tables](crate::limits) that they need.
    ///
    /// It must be at least four granules. A fault that finds the bound reached waits. Pages that
    /// cannot be written ([`on_write_back_failure`](Self::on_write_back_failure)), or that [devices
    /// hold](crate::limits#devices-that-write-to-a-region), stay, and count; what is clean is given
    /// back all the same. An access fails when there is nothing but such pages, or when it needs
    /// more pages at once than they leave.
    #[must_use]
    pub const fn resident(mut self, bytes: usize) -> Self {
        self.resident = Some(bytes);
        self
    }

    /// The region has a bound together with others, those that are mapped with the same one, in
    /// place of one of its own ([`resident`](Self::resident)). A thread of the bound gives back
    /// pages of any of them. It must be at least four granules of each.
    ///
    /// ```
    /// use pervma_pager::{Bound, MemorySource, Options};
    ///
    /// let bound = Bound::new(64 << 20)?;
    /// let index = Options::new().bound(&bound).map(MemorySource::new(vec![1; 1 << 20]))?;
    /// let data = Options::new().bound(&bound).map(MemorySource::new(vec![2; 1 << 20]))?;
    /// index.read(0, &mut [0; 4096]);
    /// data.read(0, &mut [0; 8192]);
    /// assert_eq!((index.resident(), data.resident()), (Some(4096), Some(8192)));
    /// assert_eq!(bound.resident(), 12288);
    /// # Ok::<(), pervma_pager::Error>(())
    /// ```
    #[must_use]
    pub fn bound(mut self, bound: &Bound) -> Self {
        self.bound = Some(bound.clone());
        self
    }

    /// What becomes of an access whose page cannot be had. By default the SIGBUS goes to the
    /// handler that was there before.
    #[must_use]
    pub const fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// `hook` is told when pages have to go to keep a [bound](Self::resident) and cannot be written
    /// to the source: the disk is full, for example. They stay what is to be written, and are tried
    /// again from time to time; the region keeps the last such failure
    /// ([`write_back_failure`](Region::write_back_failure)).
    ///
    /// It is called on a thread of the region, while nothing of the region is locked, each time
    /// that it happens. It may not drop the region. A panic ends the process.
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use pervma_pager::{FileSource, Options};
    ///
    /// let (full, told) = mpsc::channel();
    /// let file = tempfile::tempfile()?;
    /// file.set_len(64 << 20)?;
    /// let region = Options::new()
    ///     .writable()
    ///     .resident(1 << 20)
    ///     .on_write_back_failure(move |failure| {
    ///         let _ = full.send(failure.clone());
    ///     })
    ///     .map(FileSource::new(file)?)?;
    /// region.write(0, b"stored, sooner or later");
    /// assert!(told.try_recv().is_err() && region.write_back_failure().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn on_write_back_failure(
        mut self,
        hook: impl Fn(&WriteBackFailure) + Send + Sync + 'static,
    ) -> Self {
        self.on_write_back_failure = Hook(Some(Arc::new(hook)));
        self
    }

    /// Maps the source. The first region of a process installs the SIGBUS handler.
    ///
    /// # Errors
    ///
    /// When the source is empty or too large, when the kernel refuses userfaultfd or memory, when
    /// SIGBUS is blocked, when options do not go together: see [`Error`]. Nothing is left behind
    /// but the handler; the source is dropped.
    ///
    /// # Panics
    ///
    /// In a signal handler.
    pub fn map<S: Source + 'static>(self, source: S) -> Result<Region, Error>
    where
        M: Serves<S>,
    {
        let found = system_page_size();
        if found != PAGE {
            return Err(Error::PageSize { found });
        }
        let bytes = source.size();
        let len = usize::try_from(bytes).map_err(|_| Error::TooLarge { bytes })?;
        if len == 0 {
            return Err(Error::Empty);
        }
        let page = self.page_size.bytes();
        let granule = self.granule.unwrap_or(page);
        if !granule.is_power_of_two() || granule < page {
            return Err(Error::Granule { granule, page });
        }
        let is_threaded = !matches!(self.handlers, Threads::None);
        if self.page_size == PageSize::Huge && !is_threaded && source.bytes().is_none() {
            return Err(Error::HugeNeedsMemory);
        }
        let is_bounded = self.resident.is_some() || self.bound.is_some();
        if self.is_writable && is_bounded && !source.is_writable() {
            return Err(Error::SourceNotWritable);
        }
        if signal::is_blocked().map_err(Error::Mask)? {
            return Err(Error::SignalBlocked);
        }
        let bound = self.own_or_shared(granule)?;
        let share = bound.as_ref().map(|bound| Arc::new(bound.share()));
        let capacity = self.capacity.max(len);
        let is_in_memory = source.bytes().is_some();
        let buffers = self.buffers(is_in_memory, granule, capacity)?;
        // Of a page that two threads copy by itself the kernel takes the first, at no cost.
        let has_reads = !is_in_memory || granule > page;
        let reads = Reads::new(if has_reads { capacity.div_ceil(granule) } else { 0 });
        signal::install().map_err(Error::Handler)?;
        let mut uffd = if is_threaded {
            Userfaultfd::open(self.page_size, self.is_writable)?
        } else {
            Userfaultfd::open_sigbus(self.page_size, self.is_writable)?
        };
        uffd.check(self.is_writable, is_threaded)?;
        // Only small pages can be moved.
        let moves = self.is_writable && self.page_size == PageSize::Small && uffd.can_move();
        let staging = moves.then(|| Staging::new(&uffd, is_bounded)).transpose();
        let no_memory = |errno| Error::Memory { bytes: Staging::BYTES, errno };
        let backing = Arc::new(Backing {
            number: Backing::<S>::next_number(),
            len: len.into(),
            uffd,
            granule,
            is_tracked: self.is_writable,
            is_threaded,
            page_size: self.page_size,
            on_failure: self.on_failure,
            on_write_back_failure: self.on_write_back_failure.0,
            share,
            clock: bound.as_ref().map_or_else(Arc::default, Bound::clock),
            counters: Counters::default(),
            staging: staging.map_err(no_memory)?,
            buffers,
            moves_huge: false.into(),
            reads,
            tail: tail(source.bytes(), page),
            source,
        });
        let handlers = match self.handlers {
            Threads::None => None,
            Threads::Own(threads) => Some(Handlers::new(threads)?),
            Threads::Shared(handlers) => Some(handlers),
        };
        Region::new(backing, (self.at, capacity), handlers.as_ref(), bound.as_ref())
    }

    fn buffers(
        &self,
        is_in_memory: bool,
        granule: usize,
        capacity: usize,
    ) -> Result<Buffers, Error> {
        if is_in_memory {
            return Ok(Buffers::none());
        }
        // No more than there is to read.
        let page = self.page_size.bytes();
        let bytes = granule.min(capacity.checked_next_multiple_of(page).unwrap_or(granule));
        let made = match &self.handlers {
            Threads::None => Buffers::of_handlers(capacity.div_ceil(granule), bytes),
            Threads::Own(threads) => Buffers::of_threads(*threads, bytes),
            Threads::Shared(handlers) => Buffers::of_threads(handlers.threads(), bytes),
        };
        made.map_err(|errno| Error::Memory { bytes, errno })
    }

    fn own_or_shared(&self, granule: usize) -> Result<Option<Bound>, Error> {
        let bytes = self.bound.as_ref().map(Bound::bytes).or(self.resident);
        let Some(bytes) = bytes else { return Ok(None) };
        let least = granule.saturating_mul(4);
        if bytes < least {
            return Err(Error::Resident { bytes, least });
        }
        if let Some(bound) = &self.bound {
            bound.check_watermarks(granule)?;
        }
        self.bound.clone().map_or_else(|| Bound::new(bytes), Ok).map(Some)
    }
}

/// The last bytes, if they do not fill a page, as a page.
fn tail(bytes: Option<&[u8]>, page: usize) -> Box<[u8]> {
    let rest = bytes.map_or(&[][..], |bytes| &bytes[bytes.len() / page * page..]);
    let mut tail = rest.to_vec();
    tail.resize(rest.len().next_multiple_of(page), 0);
    tail.into()
}
