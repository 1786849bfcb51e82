//! The boundary to C: no panic leaves it, callbacks return to it, and pointers are looked at before
//! they are used.
#![expect(unsafe_code, reason = "calls callbacks, and uses pointers of the caller")]

use std::mem::{MaybeUninit, forget};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use address_space::HandlerScope;

use crate::status::{Status, fail};
use crate::thread::{Host, with};

/// Runs the body of an exported function that does not wait. No panic leaves it.
#[inline]
pub(crate) fn call(body: impl FnOnce() -> Result<(), Status>) -> Status {
    let frame = 0_u8;
    let callback = with(|thread| thread.callback.get());
    if callback != 0 {
        check_callback(callback, (&raw const frame).addr());
    }
    // What a panic interrupts is not seen half done: see `address_space`'s `unwind`.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(status)) => status,
        Err(_) => fail(Status::Internal, &"a panic, whose message is on standard error"),
    }
}

/// As [`call`], of a function that may wait, if only for the lists of handles. It is refused in
/// signal handlers that say so, and to a thread that has locked these lists for a fork.
pub(crate) fn waiting_call(body: impl FnOnce() -> Result<(), Status>) -> Status {
    call(|| {
        if with(|thread| thread.forks.get()) != 0 {
            return Err(fail(Status::BusyOwn, &"called between pervma_fork_prepare and fork"));
        }
        if HandlerScope::<Host>::active() {
            return Err(fail(Status::InHandler, &"called between pervma_handler_enter and _leave"));
        }
        body()
    })
}

/// Ends the process if the callback on record has been left by `longjmp`: then its frame is gone,
/// and this call's, which is not inside it, lies above. A handler on another stack may have
/// interrupted it.
#[cold]
fn check_callback(callback: usize, frame: usize) {
    if frame > callback && !is_on_alternate_stack() {
        die("pervma: a callback was left by longjmp, which pervma.h forbids\n");
    }
}

fn is_on_alternate_stack() -> bool {
    let mut stack = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: the kernel writes to the second argument only.
    let asked = unsafe { libc::sigaltstack(std::ptr::null(), stack.as_mut_ptr()) };
    // SAFETY: the call has succeeded, so it was written.
    asked == 0 && unsafe { stack.assume_init() }.ss_flags & libc::SS_ONSTACK != 0
}

/// Says one line and aborts. Fit for signal handlers: what they interrupt may have the lock of
/// standard error.
fn die(line: &str) -> ! {
    // SAFETY: the kernel reads so many bytes. Where they cannot be written, the process ends all
    // the same.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    std::process::abort();
}

/// Runs `call`, which calls a callback of the caller's.
#[inline(never)] // a frame of its own, which is on record
pub(crate) fn callback<R>(call: impl FnOnce() -> R) -> R {
    let frame = 0_u8;
    let outer = with(|thread| thread.callback.replace((&raw const frame).addr()));
    let left = LeftByException;
    let returned = call();
    forget(left);
    with(|thread| thread.callback.set(outer));
    returned
}

/// Dropped only when an exception unwinds the frame of a callback.
struct LeftByException;

impl Drop for LeftByException {
    fn drop(&mut self) {
        die("pervma: a callback was left by an exception, which pervma.h forbids\n");
    }
}

/// What the caller gave as a pointer to something that is read.
///
/// # Safety
///
/// Unless it is null or unaligned, `pointer` may be read for as long as the result is used.
pub(crate) unsafe fn given<'a, T>(pointer: *const T) -> Result<&'a T, Status> {
    if !pointer.is_aligned() {
        return Err(fail(Status::Invalid, &"a pointer is not aligned"));
    }
    // SAFETY: it is aligned, and the caller vouches for the rest.
    unsafe { pointer.as_ref() }.ok_or_else(|| fail(Status::Invalid, &"a pointer is NULL"))
}

/// Where the caller wants a result.
#[derive(Debug)]
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    ///
    /// Unless it is null or unaligned, `pointer` may be written for as long as the result is used.
    pub(crate) unsafe fn new(pointer: *mut T) -> Result<Self, Status> {
        match NonNull::new(pointer) {
            Some(place) if place.is_aligned() => Ok(Self(place)),
            _ => Err(fail(Status::Invalid, &"a pointer for a result is NULL or not aligned")),
        }
    }

    /// # Safety
    ///
    /// As for [`new`](Self::new), but null is nowhere.
    pub(crate) unsafe fn optional(pointer: *mut T) -> Result<Option<Self>, Status> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: as the caller says.
        unsafe { Self::new(pointer) }.map(Some)
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }

    pub(crate) fn set(&self, value: T) {
        // SAFETY: it may be written, by the contract of `new`.
        unsafe { self.0.as_ptr().write(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_code() {
        assert_eq!(call(|| panic!("planted")), Status::Internal);
        assert_eq!(call(|| Ok(())), Status::Ok);
    }

    #[test]
    fn callbacks_nest_and_leave_no_record() {
        let inner = callback(|| callback(|| call(|| Ok(()))));
        assert_eq!((inner, with(|thread| thread.callback.get())), (Status::Ok, 0));
    }
}
