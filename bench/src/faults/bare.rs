//! The lower bounds, as in the usual example code: a signal handler that does nothing but fill the
//! granule, and a thread that reads one fault at a time and fills it. No lookup, one region at a
//! time, nothing passed on, `errno` not kept.
#![expect(unsafe_code, reason = "installs and is a signal handler")]
#![expect(clippy::disallowed_types, reason = "a handler finds its region in a static")]

use std::cell::RefCell;
use std::error::Error;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::thread::JoinHandle;

use libc::{SIGBUS, siginfo_t};
use pervma_pager::sys::{Access, CopyError, Errno, Fill, Memory, PageSize, Userfaultfd};
use rustix::event::{PollFd, PollFlags, poll};

use super::plan::Mode;

/// What granules are filled with.
#[derive(Clone, Debug)]
pub(crate) enum Filling {
    /// The bytes from memory: only the ioctl.
    Bytes(Arc<[u8]>),
    /// `pread` from a file, then the ioctl.
    File(Arc<File>),
}

/// Memory whose faults are served in a bare way while it lives.
pub(crate) struct BareRegion {
    /// What `SERVING` points to, in signal mode.
    serving: Arc<Serving>,
    /// The action before.
    before: Option<libc::sigaction>,
    thread: Option<(JoinHandle<()>, std::io::PipeWriter)>,
}

struct Serving {
    memory: Memory,
    uffd: Userfaultfd,
    filling: Filling,
    granule: usize,
}

/// What the handler serves. Set while a [`BareRegion`] lives, by the thread that then starts those
/// that touch it.
static SERVING: AtomicPtr<Serving> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// Where a file is read to.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Gives the running thread a buffer to read files to, before it touches anything.
pub(crate) fn prepare_thread(granule: usize) {
    BUFFER.with(|buffer| buffer.borrow_mut().resize(granule, 0));
}

impl BareRegion {
    /// Maps `bytes` and installs the handler, or starts the thread.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Panics
    ///
    /// When there is one already.
    pub(crate) fn map(
        bytes: usize,
        granule: usize,
        mode: Mode,
        filling: Filling,
    ) -> Result<Self, Box<dyn Error>> {
        let memory = Memory::map(bytes, PageSize::Small)?;
        let uffd = match mode {
            Mode::Signal => Userfaultfd::open_sigbus(PageSize::Small, false)?,
            Mode::Thread => Userfaultfd::open(PageSize::Small, false)?,
        };
        uffd.register_missing(&memory)?;
        memory.protect(0..bytes, Access::Read)?;
        let serving = Arc::new(Serving { memory, uffd, filling, granule });
        let (mut before, mut thread) = (None, None);
        match mode {
            Mode::Signal => {
                // SAFETY: a C structure of integers and an optional function: all zeros is valid.
                let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
                action.sa_sigaction =
                    on_sigbus as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
                action.sa_flags = libc::SA_SIGINFO;
                before = Some(exchange_action(&action)?);
                // RELAXED: read by this thread and by threads that it starts later.
                let other = SERVING.swap(Arc::as_ptr(&serving).cast_mut(), Relaxed);
                assert!(other.is_null(), "one bare region at a time");
            }
            Mode::Thread => {
                let (stopped, stop) = std::io::pipe()?;
                let serving = Arc::clone(&serving);
                let poller = move || serve_by_thread(&serving, &stopped);
                thread = Some((std::thread::Builder::new().spawn(poller)?, stop));
            }
        }
        Ok(Self { serving, before, thread })
    }
}

impl Deref for BareRegion {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: each page is filled once, by a handler or thread that serves while `self` lives.
        unsafe { self.serving.memory.bytes() }
    }
}

impl Drop for BareRegion {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // RELAXED: the threads that touched the region have ended.
            SERVING.store(ptr::null_mut(), Relaxed);
            let restored = exchange_action(before);
            assert!(restored.is_ok(), "an action that was there can be restored");
        }
        if let Some((thread, stop)) = self.thread.take() {
            drop(stop);
            assert!(thread.join().is_ok(), "the handler thread has served everything");
        }
    }
}

/// Installs an action for SIGBUS and returns the one before.
fn exchange_action(action: &libc::sigaction) -> Result<libc::sigaction, std::io::Error> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: the action is a handler of this module, or one that the process had.
    match unsafe { libc::sigaction(SIGBUS, action, before.as_mut_ptr()) } {
        // SAFETY: the call succeeded, so it has written the action.
        0 => Ok(unsafe { before.assume_init() }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The handler.
///
/// # Safety
///
/// For the kernel only: for faults of a living [`BareRegion`].
unsafe extern "C" fn on_sigbus(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: set, and alive, while a region is (contract).
    let serving = unsafe { &*SERVING.load(Relaxed) };
    // SAFETY: a handler's argument.
    let info = unsafe { &*info };
    // SAFETY: a fault has an address.
    let addr = unsafe { info.si_addr() }.addr();
    BUFFER.with(|buffer| serving.serve(addr, &mut buffer.borrow_mut(), false));
}

/// The thread: one fault at a time, until the other end of `stopped` is closed.
fn serve_by_thread(serving: &Serving, stopped: &std::io::PipeReader) {
    let mut buffer = vec![0; serving.granule];
    loop {
        let mut both =
            [PollFd::new(&serving.uffd, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::process::abort(),
        }
        if !both[1].revents().is_empty() {
            return;
        }
        let read = serving.uffd.read_faults(|fault| serving.serve(fault.addr, &mut buffer, true));
        assert!(read.is_ok(), "a userfaultfd can be read");
    }
}

impl Serving {
    fn serve(&self, addr: usize, buffer: &mut [u8], wake: bool) {
        let range = self.memory.range();
        let start = (addr - range.start) / self.granule * self.granule;
        let end = (start + self.granule).min(range.len());
        match &self.filling {
            Filling::Bytes(bytes) => self.fill(start, &bytes[start..end], wake),
            Filling::File(file) => {
                let buffer = &mut buffer[..end - start];
                match rustix::io::pread(file, &mut *buffer, start as u64) {
                    Ok(read) if read == end - start => self.fill(start, buffer, wake),
                    // The access faults again; the files of rounds are whole.
                    Err(Errno::INTR) if !wake => {}
                    _ => std::process::abort(),
                }
            }
        }
    }

    fn fill(&self, start: usize, bytes: &[u8], wake: bool) {
        match self.uffd.copy(&self.memory, start, bytes, Fill { wake, ..Fill::default() }) {
            Ok(()) => {}
            // Another thread is filling it, or has.
            Err(CopyError::AlreadyPresent | CopyError::Again { .. }) if !wake => {}
            Err(CopyError::AlreadyPresent) => {
                let addr = self.memory.range().start + start;
                assert!(self.uffd.wake(addr, bytes.len()).is_ok(), "whole pages can be woken");
            }
            Err(_) => std::process::abort(),
        }
    }
}
