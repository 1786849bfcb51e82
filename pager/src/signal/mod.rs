//! The SIGBUS handler of this process.
#![expect(unsafe_code, reason = "installs and is a signal handler")]

mod action;
mod mask;
mod previous;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use libc::{SIGBUS, siginfo_t};
use pervma::{HandlerScope, StdPlatform};

use self::action::set_action;
pub(crate) use self::mask::{SignalsBlocked, is_blocked};
use self::previous::Previous;
use crate::Error;
use crate::failure::Response;
use crate::fault::{self, Cause, Server, Verdict};
use crate::mapping::PAGE;
use crate::stats::Shard;
use crate::sys::Errno;
use crate::wakeup::rest;

/// Whether our handler was installed at some time.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// Installs the handler, once per process.
pub(crate) fn install() -> Result<(), Errno> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        install_over_what_is_there()?;
        *installed = true;
    }
    Ok(())
}

/// What is there is noted before our handler is installed, which can always read it then.
fn install_over_what_is_there() -> Result<(), Errno> {
    let (ours, there) = (our_action(), Previous::query()?);
    if !there.is(ours.sa_sigaction) {
        previous::note(there);
    }
    stay_loaded();
    set_action(&ours)
}

/// Has the library that this code is in stay loaded, if it is in one: the kernel would call a
/// handler that is not there any more.
fn stay_loaded() {
    // SAFETY: asks the C library for what the kernel has told it.
    let program = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    // Without a dynamic linker nothing is loaded that could be unloaded.
    let Some(ours) = loaded_with(on_sigbus as *const () as usize) else { return };
    if loaded_with(program).is_some_and(|program| program.dli_fbase == ours.dli_fbase) {
        return;
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: a string of the dynamic linker's, and nothing is loaded. If it fails, the library is
    // as it was.
    unsafe { libc::dlopen(ours.dli_fname, flags) };
}

/// What the dynamic linker knows of what is loaded at an address.
fn loaded_with(addr: usize) -> Option<libc::Dl_info> {
    let mut about = std::mem::MaybeUninit::uninit();
    // SAFETY: only asks of the address, and writes what is known to the place it is given.
    let known = unsafe { libc::dladdr(addr as *const c_void, about.as_mut_ptr()) };
    // SAFETY: if the call succeeded it has written all of it.
    (known != 0).then(|| unsafe { about.assume_init() })
}

/// Installs the SIGBUS handler of this crate, again if another one has taken its place: a library
/// that was loaded later and does not pass on what is not its own (Python's `faulthandler`, a crash
/// reporter), or the default action, which the standard library's handler restores when a SIGBUS
/// was sent. The first region that is mapped installs it; later ones do not, since who comes later
/// may have meant it, and may [pass signals on](serve_sigbus).
///
/// What is there gets the signals that are no faults of regions, and may pass on to this crate's
/// handler what it does not take, as it may before: that goes to what was there earlier. If the
/// handler is there already, nothing changes.
///
/// ```
/// use pervma_pager::{FrozenRegion, MemorySource};
///
/// let region = FrozenRegion::map(MemorySource::new(vec![7; 8192]))?;
/// // A library is loaded that takes SIGBUS.
/// pervma_pager::install_handler()?;
/// assert_eq!(region[4096], 7);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Handler`] where a filter refuses it.
pub fn install_handler() -> Result<(), Error> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    install_over_what_is_there().map_err(Error::Handler)?;
    *installed = true;
    Ok(())
}

/// Serves a SIGBUS that is a fault of a region, for an application that has a handler of its own in
/// place of this crate's. Whether it was one, and the thread may go on: the handler returns then.
/// If not, the signal is the application's; so is an access that failed and whose region
/// [passes that on](crate::OnFailure::pass_on).
///
/// It does not lock, allocate or run a destructor, and leaves `errno` as it was.
///
/// ```
/// use std::ffi::{c_int, c_void};
///
/// unsafe extern "C" fn on_sigbus(signal: c_int, info: *mut c_void, context: *mut c_void) {
///     // SAFETY: the arguments of a handler with SA_SIGINFO, under which all signals are blocked.
///     if !unsafe { pervma_pager::serve_sigbus(signal, info, context) } {
///         std::process::abort(); // what the application does otherwise
///     }
/// }
/// ```
///
/// # Safety
///
/// It is called by a handler of a signal, in the thread that got it, with the arguments that the
/// handler got: of one that was installed with `SA_SIGINFO`, with all signals in `sa_mask`, and
/// without `SA_NODEFER`. On an alternate stack it needs what [`limits`](crate::limits) says.
pub unsafe fn serve_sigbus(signal: c_int, info: *mut c_void, context: *mut c_void) -> bool {
    if signal != SIGBUS {
        return false;
    }
    // SAFETY: no condition; the C library has one for each thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is valid while the thread lives, and no other thread's.
    let saved = unsafe { errno.read() };
    // SAFETY: a handler's arguments (contract).
    let served = unsafe { serve(info.cast(), context) };
    // SAFETY: the thread's own `errno`, which was read above.
    unsafe { errno.write(saved) };
    served
}

/// Our handler, with every signal blocked while it runs and system calls restarted after a SIGBUS
/// that was sent.
fn our_action() -> libc::sigaction {
    // SAFETY: a C structure of integers and an optional function: all zeros is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction =
        on_sigbus as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: writes the set that it is given.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    action
}

/// What a handler thread tells a thread that sleeps for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The access is to be made again.
    Again,
    /// It is to fail.
    Failure,
    /// It is to fail if it needs more pages at once than can be present.
    InVain,
}

/// A SIGBUS that a handler thread sends to a thread that sleeps for a fault, where a filter lets it
/// neither wake nor poison: the start of `siginfo_t`, as far as the kernel passes it through.
#[repr(C)]
struct Sent {
    signal: c_int,
    errno: c_int,
    code: c_int,
    /// Where the kernel has it for faults.
    addr: usize,
    /// Tells it from a signal that comes from elsewhere.
    token: usize,
    /// A [`Told`].
    told: usize,
    rest: [u64; 11],
}

impl Sent {
    /// No code of the kernel's: only the kernel can send those of faults.
    const CODE: c_int = -0x7065;

    fn token() -> usize {
        (&raw const INSTALLED).addr()
    }

    /// Whether this signal is one.
    ///
    /// # Safety
    ///
    /// The pointer is a handler's argument.
    unsafe fn of<'a>(info: *const siginfo_t) -> Option<&'a Self> {
        const _: () = assert!(size_of::<Sent>() == size_of::<siginfo_t>());
        // SAFETY: it points to so many bytes (contract), and all of them are valid.
        let sent = unsafe { &*info.cast::<Self>() };
        (sent.code == Self::CODE && sent.token == Self::token()).then_some(sent)
    }
}

/// Tells a thread that sleeps for a fault; whether that was let through.
pub(crate) fn send_fault(thread: u32, addr: usize, told: Told) -> bool {
    let sent = Sent {
        signal: SIGBUS,
        errno: 0,
        code: Sent::CODE,
        addr,
        token: Sent::token(),
        told: told as usize,
        rest: [0; 11],
    };
    let (call, process) = (libc::SYS_rt_tgsigqueueinfo, std::process::id());
    // SAFETY: sends a signal within this process; the kernel only reads what it is given.
    unsafe { libc::syscall(call, process, thread, SIGBUS, &raw const sent) == 0 }
}

/// The handler. It leaves `errno` as it was.
///
/// # Safety
///
/// For the kernel only: `info` and `context` are those of a delivered signal.
unsafe extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: no condition; the C library has one for each thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is valid while the thread lives, and no other thread's.
    let saved = unsafe { errno.read() };
    let frame = (&raw const saved).addr();
    let times_back = previous::times_back(context, frame);
    // If it is passed back, it was no fault of a region.
    // SAFETY: a handler's arguments, passed through.
    if times_back > 0 || !unsafe { serve(info, context) } {
        // SAFETY: passed on as they came.
        unsafe { previous::pass_on(signal, info, context, frame, times_back) }
    }
    // SAFETY: the thread's own `errno`, which was read above.
    unsafe { errno.write(saved) };
}

/// Serves a signal if it is a fault of a region; whether the thread may go on.
///
/// # Safety
///
/// `info` and `context` are those of a delivered SIGBUS.
unsafe fn serve(info: *const siginfo_t, context: *mut c_void) -> bool {
    // SAFETY: a delivered signal comes with a `siginfo_t`.
    let about = unsafe { &*info };
    if matches!(about.si_code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR) {
        // SAFETY: with these codes the kernel reports a fault, and a fault has an address.
        let addr = unsafe { about.si_addr() }.addr();
        // SAFETY: a delivered signal comes with the interrupted thread's context.
        let cause = unsafe { cause(context) };
        respond(addr, Some(cause), context)
    } else {
        // SAFETY: a handler's argument.
        match unsafe { Sent::of(info) } {
            Some(sent) if sent.told == Told::Failure as usize => respond(sent.addr, None, context),
            Some(sent) if sent.told == Told::InVain as usize => go_on_in_vain(sent.addr, context),
            Some(_) => true,
            None => false,
        }
    }
}

/// Serves a fault, or fails the access if no cause is given; whether the thread may go on.
#[inline]
fn respond(addr: usize, cause: Option<Cause>, context: *mut c_void) -> bool {
    thread_local! {
        static SERVING: Cell<bool> = const { Cell::new(false) };
        /// The address of the access that was put off last; 0 if the last one was not.
        static PUT_OFF: Cell<usize> = const { Cell::new(0) };
    }
    if SERVING.replace(true) {
        // A fault inside a fault of this thread, which all signals being blocked prevents: a
        // handler that was installed later has called ours with a smaller mask.
        return false;
    }
    if cause.is_some() && SUSPECT.get().page != 0 {
        note_suspect(addr, context);
    }
    let verdict = {
        let _inside = HandlerScope::<StdPlatform>::enter();
        match cause {
            Some(cause) => fault::serve(addr, cause, PUT_OFF.get() == addr, Server::Handler),
            None => fault::fail(addr),
        }
    };
    SERVING.set(false);
    let is_put_off =
        matches!(verdict, Verdict::Changed { .. } | Verdict::Later | Verdict::NoRoom(_));
    PUT_OFF.set(if is_put_off { addr } else { 0 });
    match verdict {
        Verdict::Filled { .. } | Verdict::UnderWay { .. } => true,
        Verdict::Present { number, time, .. } => fault::may_repeat(number, addr, time),
        Verdict::Changed { .. } | Verdict::Later => {
            rest(times_in_a_row());
            true
        }
        // Nothing is locked.
        Verdict::NoRoom(wait) => {
            wait.wait();
            true
        }
        Verdict::InVain => go_on_in_vain(addr, context),
        // No scope is open and nothing is locked: a hook need not return.
        Verdict::Failed { on_failure, offset, .. } => {
            on_failure.respond(addr, offset, context) == Response::Resume
        }
        Verdict::PassOn => false,
    }
}

thread_local! {
    /// The access that may need more pages at once than can be present; none if its page is 0.
    static SUSPECT: Cell<Suspect> = const { Cell::new(Suspect { registers: 0, page: 0, others: false }) };
}

/// An access that may need more pages at once than can be present. The registers say what an
/// instruction touches: with the same at two pages, it is one that touches both.
#[derive(Clone, Copy)]
struct Suspect {
    registers: u64,
    page: usize,
    /// It has faulted at other pages since.
    others: bool,
}

/// Notes a fault of a thread of which an access is suspected.
#[cold]
fn note_suspect(addr: usize, context: *mut c_void) {
    let mut suspect = SUSPECT.get();
    // SAFETY: a handler's argument.
    if unsafe { registers(context) } != suspect.registers {
        // The thread has come further.
        suspect.page = 0;
    } else if addr / PAGE != suspect.page {
        suspect.others = true;
    }
    SUSPECT.set(suspect);
}

/// Fails an access that may need more pages at once than can be present, if it does; whether it may
/// go on. It does if it has faulted at several pages, and here again.
#[cold]
fn go_on_in_vain(addr: usize, context: *mut c_void) -> bool {
    // SAFETY: a handler's argument.
    let (registers, page) = (unsafe { registers(context) }, addr / PAGE);
    let last = SUSPECT.replace(Suspect { registers, page, others: false });
    let is_same = last.page != 0 && last.registers == registers;
    let is_in_vain = is_same && (last.others || last.page != page);
    !is_in_vain || respond(addr, None, context)
}

/// How often this thread has been put off since it had a fault served.
fn times_in_a_row() -> u32 {
    thread_local! {
        static LAST: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
    }
    let faults = Shard::mine().faults();
    let (last, times) = LAST.get();
    let times = if last == faults { times.saturating_add(1) } else { 1 };
    LAST.set((faults, times));
    times
}

/// Why the access faulted, as the processor says.
///
/// # Safety
///
/// `context` is that of a fault's signal.
#[cfg(target_arch = "x86_64")]
unsafe fn cause(context: *mut c_void) -> Cause {
    /// Bits of a page fault's error code.
    const PRESENT: i64 = 1;
    const WRITE: i64 = 2;
    // SAFETY: a handler's argument (contract).
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let code = context.uc_mcontext.gregs[libc::REG_ERR as usize];
    if code & (PRESENT | WRITE) == PRESENT | WRITE {
        Cause::WriteProtected
    } else {
        Cause::Missing { is_write: code & WRITE != 0 }
    }
}

/// As above, for processors whose contexts this crate does not read.
///
/// # Safety
///
/// None.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn cause(_context: *mut c_void) -> Cause {
    Cause::Unknown
}

/// A hash of the registers of the interrupted thread.
///
/// # Safety
///
/// `context` is that of a signal.
#[cfg(target_arch = "x86_64")]
unsafe fn registers(context: *mut c_void) -> u64 {
    // SAFETY: a handler's argument (contract).
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let registers = &context.uc_mcontext.gregs[..=libc::REG_RIP as usize];
    registers.iter().fold(1, |hash: u64, register| {
        (hash ^ register.cast_unsigned()).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    })
}

/// As above, for processors whose contexts this crate does not read: the same for all.
///
/// # Safety
///
/// None.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn registers(_context: *mut c_void) -> u64 {
    0
}
