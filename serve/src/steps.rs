//! Ways for a serving process to die, to see that the next one goes on.
#![expect(clippy::disallowed_types, reason = "a count of steps that guards no memory")]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// Steps until this process dies; 0 for never.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// This process kills itself at so many steps from now on: counted are what its threads read, note
/// and answer. 0 for never.
pub fn die_after(steps: u64) {
    // RELAXED: here and below, a number that guards nothing.
    LEFT.store(steps, Relaxed);
}

/// This process kills itself at some time, `often` later on average; every other time it does so
/// between two of its steps. It lives if it is `until` then.
///
/// # Errors
///
/// When no thread can be had.
pub fn die_at_random(often: Duration, until: Instant) -> std::io::Result<()> {
    // Not the standard library's: the keeper's copy of that would say the same each time.
    let mut chance = [0; 8];
    rustix::rand::getrandom(&mut chance, rustix::rand::GetRandomFlags::empty())?;
    let chance = u64::from_ne_bytes(chance);
    let wait = often.mul_f64(2.0 * (chance % 1024) as f64 / 1024.0);
    let die = move || {
        thread::sleep(wait);
        if Instant::now() < until {
            match chance >> 10 & 1 {
                0 => die(),
                _ => die_after(1 + (chance >> 11) % 64),
            }
        }
    };
    thread::Builder::new().name("pervma-chaos".to_owned()).spawn(die).map(drop)
}

/// A step is done.
pub(crate) fn step() {
    if LEFT.load(Relaxed) != 0 && LEFT.fetch_sub(1, Relaxed) == 1 {
        die();
    }
}

/// Kills this process.
pub(crate) fn die() -> ! {
    let this = pidfd_open(getpid(), PidfdFlags::empty());
    // It does not return.
    let _ = this.map(|this| pidfd_send_signal(this, Signal::KILL));
    // There is no descriptor left, perhaps.
    std::process::abort();
}
