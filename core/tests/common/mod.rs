//! What the test programs share: a watchdog, and a platform that counts its calls.
#![allow(dead_code, reason = "each test program uses a part")]

use std::marker::PhantomData;
use std::panic::Location;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use pervma::lock_api::{RawRwLock, RawRwLockDowngrade};
use pervma::{GlobalMemory, HandlerScope, Platform, StdPlatform, ThreadState, WaitWord};

/// What a test that waits for others may take: far more than it needs on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Sets another limit, in seconds.
pub(crate) const LIMIT_VARIABLE: &str = "PERVMA_TEST_LIMIT";

/// Ends the process, and names the test, unless it is dropped in time.
#[must_use]
pub(crate) struct Watchdog {
    /// Dropped, it is a message.
    _alive: Option<Sender<()>>,
}

impl Watchdog {
    /// Waits until `state` is seen.
    pub(crate) fn until(&self, mut state: impl FnMut() -> bool) {
        while !state() {
            thread::yield_now();
        }
    }
}

/// Watches over a test until the result is dropped.
#[track_caller]
pub(crate) fn watchdog() -> Watchdog {
    watchdog_beyond(Duration::ZERO)
}

/// As [`watchdog`], for a test that itself takes as long as `work`.
#[track_caller]
pub(crate) fn watchdog_beyond(work: Duration) -> Watchdog {
    if cfg!(miri) {
        // Miri finds deadlocks by itself, and its clock has little to do with time.
        return Watchdog { _alive: None };
    }
    let limit = std::env::var(LIMIT_VARIABLE).map_or(LIMIT, |seconds| match seconds.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(error) => panic!("{LIMIT_VARIABLE}: {error}"),
    });
    let (place, test) = (Location::caller(), thread::current().name().map(str::to_owned));
    let (alive, waiting) = mpsc::channel();
    thread::spawn(move || {
        if waiting.recv_timeout(work + limit) == Err(RecvTimeoutError::Timeout) {
            let test = test.unwrap_or_default();
            eprintln!("{test}, at {place}, has not ended within {:?}", work + limit);
            process::abort();
        }
    });
    Watchdog { _alive: Some(alive) }
}

/// What a [`Delegate`] was called for.
pub(crate) struct Calls {
    /// Calls that let a thread sleep.
    pub(crate) waits: AtomicUsize,
    /// Calls that wake sleepers.
    pub(crate) wakes: AtomicUsize,
    /// Barriers that all threads were made to pass.
    pub(crate) barriers: AtomicUsize,
    /// Threads that wait for a lock of the platform just now.
    pub(crate) queued: AtomicUsize,
    /// The word that was waited on last.
    pub(crate) word: AtomicPtr<u32>,
}

impl Calls {
    pub(crate) const fn none() -> Self {
        Self {
            waits: AtomicUsize::new(0),
            wakes: AtomicUsize::new(0),
            barriers: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            word: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether a thread sleeps, or is about to, since there were `before` calls.
    pub(crate) fn has_waited_since(&self, before: usize) -> bool {
        self.waits.load(Relaxed) > before
    }

    /// Whether a thread waits for a lock.
    pub(crate) fn is_queued(&self) -> bool {
        self.queued.load(Relaxed) != 0
    }
}

/// How a [`Delegate`] differs from the platform behind it.
pub(crate) trait Watched: 'static {
    /// Whether readers may rely on the platform's barrier.
    const BARRIER: bool = true;

    /// Where calls are counted.
    fn calls() -> &'static Calls;
}

/// [`StdPlatform`], with its calls counted. A lock or a sleep inside a marked signal handler ends
/// the process.
pub(crate) struct Delegate<W>(PhantomData<W>);

// SAFETY: `StdPlatform` does what it promises; what is counted is no word of a lock.
unsafe impl<W: Watched> Platform for Delegate<W> {
    type Lock = WatchedLock<W>;
    type Memory = GlobalMemory;
    type Deadline = Instant;

    fn wait(word: &WaitWord, seen: u32, deadline: Option<Instant>) -> bool {
        assert_outside_of_handlers();
        W::calls().word.store(word.as_ptr().cast_mut(), Relaxed);
        W::calls().waits.fetch_add(1, Relaxed);
        StdPlatform::wait(word, seen, deadline)
    }

    fn wake(word: &WaitWord) {
        W::calls().wakes.fetch_add(1, Relaxed);
        StdPlatform::wake(word);
    }

    fn wake_all(word: &WaitWord) {
        W::calls().wakes.fetch_add(1, Relaxed);
        StdPlatform::wake_all(word);
    }

    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        StdPlatform::with_thread(f)
    }

    fn prepare_barrier() -> bool {
        W::BARRIER && StdPlatform::prepare_barrier()
    }

    fn barrier() {
        W::calls().barriers.fetch_add(1, Relaxed);
        StdPlatform::barrier();
    }
}

type StdLock = <StdPlatform as Platform>::Lock;

/// The lock of a [`Delegate`].
pub(crate) struct WatchedLock<W>(StdLock, PhantomData<fn() -> W>);

/// Ends the process inside a marked signal handler.
pub(crate) fn assert_outside_of_handlers() {
    if HandlerScope::<StdPlatform>::active() {
        process::abort();
    }
}

impl<W: Watched> WatchedLock<W> {
    /// Takes the lock by `try_lock` or else, counted, by `lock`.
    fn acquire(&self, try_lock: fn(&StdLock) -> bool, lock: fn(&StdLock)) {
        assert_outside_of_handlers();
        if !try_lock(&self.0) {
            W::calls().queued.fetch_add(1, Relaxed);
            lock(&self.0);
            W::calls().queued.fetch_sub(1, Relaxed);
        }
    }
}

// SAFETY: the lock of `StdPlatform` keeps the contract, and each call is handed on to it.
unsafe impl<W: Watched> RawRwLock for WatchedLock<W> {
    const INIT: Self = Self(StdLock::INIT, PhantomData);

    type GuardMarker = <StdLock as RawRwLock>::GuardMarker;

    fn lock_shared(&self) {
        self.acquire(StdLock::try_lock_shared, StdLock::lock_shared);
    }

    fn try_lock_shared(&self) -> bool {
        assert_outside_of_handlers();
        self.0.try_lock_shared()
    }

    unsafe fn unlock_shared(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.unlock_shared() };
    }

    fn lock_exclusive(&self) {
        self.acquire(StdLock::try_lock_exclusive, StdLock::lock_exclusive);
    }

    fn try_lock_exclusive(&self) -> bool {
        assert_outside_of_handlers();
        self.0.try_lock_exclusive()
    }

    unsafe fn unlock_exclusive(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.unlock_exclusive() };
    }
}

// SAFETY: as for `RawRwLock`.
unsafe impl<W: Watched> RawRwLockDowngrade for WatchedLock<W> {
    unsafe fn downgrade(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.downgrade() };
    }
}
