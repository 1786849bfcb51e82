//! A space that handlers of `pthread_atfork(3)` carry into every child of fork.
#![cfg(all(target_os = "linux", not(miri)))]
#![expect(unsafe_code, reason = "handlers of fork")]
#![expect(clippy::disallowed_types, reason = "tests")]

mod common;

use std::cell::UnsafeCell;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use common::watchdog;
use pervma::{AddressSpace, PreparedFork};

static SPACE: AddressSpace<u64> = AddressSpace::new(0x1000);

/// Where the handlers keep the prepared space: only the thread that edits it uses the place.
struct Place(UnsafeCell<Option<PreparedFork<'static, u64>>>);

// SAFETY: a thread puts something in when it has the edit, and takes it out before it ends that.
unsafe impl Sync for Place {}

static PREPARED: Place = Place(UnsafeCell::new(None));

extern "C" fn prepare() {
    // A thread that must not wait forks unprepared.
    if let Ok(prepared) = SPACE.prepare_fork() {
        // SAFETY: this thread has the edit.
        unsafe { *PREPARED.0.get() = Some(prepared) };
    }
}

/// What this thread has prepared.
///
/// # Safety
///
/// The caller is a handler that follows `prepare`, of the same thread.
unsafe fn prepared() -> Option<PreparedFork<'static, u64>> {
    // SAFETY: this thread has the edit, unless it was refused one; and then this test has only one
    // thread that forks.
    unsafe { (*PREPARED.0.get()).take() }
}

extern "C" fn parent() {
    // SAFETY: it follows `prepare`.
    if let Some(prepared) = unsafe { prepared() } {
        prepared.parent();
    }
}

extern "C" fn child() {
    // SAFETY: it follows `prepare`.
    match unsafe { prepared() } {
        // SAFETY: a child of fork; the test makes no guard that it uses there.
        Some(prepared) => unsafe { prepared.child() },
        None => SPACE.abandon_after_fork(),
    }
}

#[test]
fn children_of_fork_and_of_commands_can_use_the_space() {
    let _watchdog = watchdog();
    // SAFETY: the handlers are functions of this program.
    assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) }, 0);
    SPACE.insert(0x1000..0x3000, 1).unwrap();

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                SPACE.update(0x1000..0x3000, |_, payload| *payload).unwrap();
            }
        });
        scope.spawn(|| {
            while !over.load(Relaxed) {
                drop(SPACE.read(0x1000));
            }
        });
        for _ in 0..100 {
            // SAFETY: the child makes calls that are legal there, and ends.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                // SAFETY: system calls.
                unsafe { libc::alarm(100) };
                let read = SPACE.try_read(0x1000).is_ok_and(|vma| *vma == 1);
                let edited = SPACE.edit().is_ok_and(|mut edit| edit.write(0x1000).is_ok());
                // SAFETY: it ends the child.
                unsafe { libc::_exit(i32::from(!(read && edited))) };
            }
            let mut status = 0;
            // SAFETY: waits for the child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child's status: a signal, or 256");
        }
        for _ in 0..20 {
            let mut command = Command::new("/bin/true");
            // SAFETY: a lookup and a write lock are legal between fork and exec.
            unsafe {
                command.pre_exec(|| match SPACE.try_read(0x2fff) {
                    Ok(vma) if *vma == 1 => Ok(()),
                    _ => Err(io::ErrorKind::NotFound.into()),
                })
            };
            assert!(command.status().unwrap().success());
        }
        over.store(true, Relaxed);
    });
}
