//! A signal handler that looks addresses up while its own thread looks up, edits and excludes: real
//! signals at any instruction, as fast as they can be sent.
//!
//! It must never get *locked*, for no thread would unlock while it waits, nor a false hole; and it
//! leaves the thread's record of what it holds as it was.
#![cfg(target_os = "linux")]
#![expect(clippy::disallowed_types, reason = "tests")]

mod common;

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::thread;

use common::watchdog;
use pervma::{AddressSpace, HandlerScope, ReadError, Reader, StdPlatform};

/// Each payload is the start of its VMA.
static SPACE: AddressSpace<usize> = AddressSpace::new(1);
/// Mapped throughout, in the middle of what changes.
const CONSTANT: usize = 100;

/// The registered reader of the thread that is interrupted, while it has one.
static READER: AtomicPtr<Reader<'static, usize>> = AtomicPtr::new(ptr::null_mut());

static HANDLED: AtomicU64 = AtomicU64::new(0);
static READ: AtomicU64 = AtomicU64::new(0);
static HOLES: AtomicU64 = AtomicU64::new(0);
static IN_OWN_EDIT: AtomicU64 = AtomicU64::new(0);
static IN_OWN_EXCLUSION: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

extern "C" fn look(_signal: libc::c_int) {
    let _scope = HandlerScope::<StdPlatform>::enter();
    let turn = HANDLED.fetch_add(1, Relaxed);
    // SAFETY: it belongs to the thread that runs this, and is taken away before it is dropped.
    let reader = unsafe { READER.load(Relaxed).as_ref() };
    for addr in [CONSTANT, turn as usize % 200] {
        let read = match reader {
            Some(reader) if turn.is_multiple_of(2) => reader.try_read(addr),
            _ => SPACE.try_read(addr),
        };
        let count = match read {
            Ok(vma) if *vma == vma.range().start && vma.range().contains(&addr) => &READ,
            Err(ReadError::NotMapped { .. }) if addr != CONSTANT => &HOLES,
            Err(ReadError::OwnEdit { .. }) => &IN_OWN_EDIT,
            Err(ReadError::OwnExclusion { .. }) => &IN_OWN_EXCLUSION,
            Ok(_) | Err(_) => &WRONG,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// How often the handler must have got each result.
const TIMES: u64 = if cfg!(debug_assertions) { 500 } else { 5_000 };

#[test]
fn a_handler_reads_in_the_middle_of_everything() {
    let _watchdog = watchdog();
    // SAFETY: `sigaction` is plain data, for which zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = look as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only makes lookups and counts, which are async-signal-safe.
    let installed = unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
    assert_eq!(installed, 0);

    SPACE.edit().unwrap().insert(CONSTANT..CONSTANT + 1, CONSTANT).unwrap();
    // SAFETY: no precondition.
    let target = unsafe { libc::pthread_self() };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for sent in 0.. {
                // One at a time: those that come back to back would hit the same instruction.
                while HANDLED.load(Relaxed) < sent && !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
                if stop.load(Relaxed) {
                    break;
                }
                // SAFETY: the thread waits for this one at the end of the scope, so it lives.
                assert_eq!(unsafe { libc::pthread_kill(target, libc::SIGUSR1) }, 0);
            }
        });
        let mut round = 0;
        let mut reader = SPACE.register().unwrap();
        READER.store(&raw mut reader, Relaxed);
        // Holes and exclusions are rarer.
        while [&READ, &IN_OWN_EDIT].iter().any(|count| count.load(Relaxed) < TIMES)
            || [&HOLES, &IN_OWN_EXCLUSION].iter().any(|count| count.load(Relaxed) == 0)
        {
            if WRONG.load(Relaxed) != 0 {
                break;
            }
            let start = round * 7 % 90 + 101 * (round % 2);
            round += 1;
            // Were a guard of the handler still on record, or one of ours taken off, this would
            // fail.
            let mut edit = SPACE.edit().unwrap();
            edit.insert(start..start + 3, start).unwrap();
            *edit.write(start).unwrap() = start;
            drop(edit);
            assert_eq!(*SPACE.try_read(start).unwrap(), start);
            // Were what the handler read still published, or what we read retracted by it, the
            // exclusion below would wait forever, or not for us.
            // SAFETY: the handler only shares it.
            let reader = unsafe { &*READER.load(Relaxed) };
            assert_eq!(*reader.try_read(start).unwrap(), start);
            let exclusion = SPACE.exclude(start..start + 3).unwrap();
            exclusion.wait();
            assert_eq!(exclusion.remove().unwrap().len(), 1);
        }
        stop.store(true, Relaxed);
        READER.store(ptr::null_mut(), Relaxed);
        drop(reader);
    });
    let counts = [&READ, &HOLES, &IN_OWN_EDIT, &IN_OWN_EXCLUSION].map(|count| count.load(Relaxed));
    println!("read, holes, in an edit, in an exclusion: {counts:?}");
    assert_eq!(WRONG.load(Relaxed), 0, "a handler got a result that is not allowed");
}
