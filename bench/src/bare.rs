//! The floor: signal handlers that do nothing but fill the page, as in the usual example code. No
//! lookup, one region at a time, nothing passed on, `errno` not kept.
#![expect(unsafe_code, reason = "installs and is a signal handler")]
#![expect(clippy::disallowed_types, reason = "a handler finds its region in a static")]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use libc::{SIGBUS, siginfo_t};
use pervma_pager::sys::{Access, CopyError, Errno, Fill, Memory, PageSize, Userfaultfd};

use crate::round::PAGE;

/// What a bare handler fills pages with.
#[derive(Debug)]
pub(crate) enum Filling {
    /// Always the same page, which stays in the processor's cache: only the ioctl.
    OnePage(Box<[u8; PAGE]>),
    /// The page's own bytes from memory: only the ioctl, and the cache misses of the copy.
    Bytes(Arc<[u8]>),
    /// `pread` of the page from a file, then the ioctl.
    File(File),
}

/// Memory whose faults a bare handler serves while it lives.
pub(crate) struct BareRegion {
    /// What `SERVING` points to: a box, given back when the region is dropped.
    serving: *mut Serving,
    before: libc::sigaction,
}

struct Serving {
    memory: Memory,
    uffd: Userfaultfd,
    filling: Filling,
}

/// What the handler serves. Set while a [`BareRegion`] lives, by the thread that then starts those
/// that touch it.
static SERVING: AtomicPtr<Serving> = AtomicPtr::new(ptr::null_mut());

impl BareRegion {
    /// Maps `pages` and installs the handler.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Panics
    ///
    /// When there is one already.
    pub(crate) fn map(pages: usize, filling: Filling) -> Result<Self, Box<dyn std::error::Error>> {
        let memory = Memory::map(pages * PAGE, PageSize::Small)?;
        let uffd = Userfaultfd::open_sigbus(PageSize::Small, false)?;
        uffd.register_missing(&memory)?;
        memory.protect(0..pages * PAGE, Access::Read)?;
        let handler: unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = match filling {
            Filling::OnePage(_) | Filling::Bytes(_) => only_ioctl,
            Filling::File(_) => pread_and_ioctl,
        };
        // SAFETY: a C structure of integers and an optional function: all zeros is valid.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let before = exchange_action(&action)?;
        let serving = Box::into_raw(Box::new(Serving { memory, uffd, filling }));
        // RELAXED: read by this thread and by threads that it starts later.
        let other = SERVING.swap(serving, Relaxed);
        assert!(other.is_null(), "one bare region at a time");
        Ok(Self { serving, before })
    }
}

impl Deref for BareRegion {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: from a box that is given back when `self` is dropped.
        let serving = unsafe { &*self.serving };
        // SAFETY: the handler fills each page once, and is installed while `self` lives.
        unsafe { serving.memory.bytes() }
    }
}

impl Drop for BareRegion {
    fn drop(&mut self) {
        // RELAXED: the threads that touched the region have ended.
        SERVING.store(ptr::null_mut(), Relaxed);
        let restored = exchange_action(&self.before);
        assert!(restored.is_ok(), "an action that was there can be restored");
        // SAFETY: from `Box::into_raw` in `map`, and nobody uses it any more.
        drop(unsafe { Box::from_raw(self.serving) });
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

/// What is served, and the offset of the page that faulted.
///
/// # Safety
///
/// In a handler for faults of a living [`BareRegion`], with its `info`.
unsafe fn fault(info: *mut siginfo_t) -> (&'static Serving, usize) {
    // SAFETY: set, and alive, while a region is (contract).
    let serving = unsafe { &*SERVING.load(Relaxed) };
    // SAFETY: a handler's argument (contract).
    let info = unsafe { &*info };
    // SAFETY: a fault has an address (contract).
    let addr = unsafe { info.si_addr() }.addr();
    (serving, (addr - serving.memory.range().start) & !(PAGE - 1))
}

fn fill(serving: &Serving, offset: usize, page: &[u8]) {
    match serving.uffd.copy(&serving.memory, offset, page, Fill::default()) {
        Ok(()) | Err(CopyError::AlreadyPresent) => {}
        Err(_) => std::process::abort(),
    }
}

/// # Safety
///
/// For the kernel only.
unsafe extern "C" fn only_ioctl(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: only faults of the region raise SIGBUS here.
    let (serving, offset) = unsafe { fault(info) };
    match &serving.filling {
        Filling::OnePage(page) => fill(serving, offset, &page[..]),
        Filling::Bytes(bytes) => fill(serving, offset, &bytes[offset..offset + PAGE]),
        Filling::File(_) => {}
    }
}

/// # Safety
///
/// For the kernel only.
unsafe extern "C" fn pread_and_ioctl(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    thread_local! {
        static BUFFER: UnsafeCell<[u8; PAGE]> = const { UnsafeCell::new([0; PAGE]) };
    }
    // SAFETY: only faults of the region raise SIGBUS here.
    let (serving, offset) = unsafe { fault(info) };
    if let Filling::File(file) = &serving.filling {
        BUFFER.with(|buffer| {
            // SAFETY: the thread's own, and the handler is not entered again while it runs.
            let buffer = unsafe { &mut *buffer.get() };
            match rustix::io::pread(file, &mut *buffer, offset as u64) {
                Ok(PAGE) => fill(serving, offset, buffer),
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => std::process::abort(),
            }
        });
    }
}
