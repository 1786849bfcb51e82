//! Sleeping on a word without a futex, in the queues of `parking_lot_core`.
#![expect(unsafe_code, reason = "parking by address has a contract")]

use std::time::Instant;

use parking_lot_core::{
    DEFAULT_PARK_TOKEN, DEFAULT_UNPARK_TOKEN, ParkResult, park, unpark_all, unpark_one,
};

use crate::sync::WaitWord;

/// The queue of a word.
fn key(word: &WaitWord) -> usize {
    word.as_ptr().addr()
}

/// As [`Platform::wait`](crate::Platform::wait).
pub(super) fn wait(word: &WaitWord, seen: u32, deadline: Option<Instant>) -> bool {
    let still = || word.value() == seen;
    // SAFETY: the key is the address of a word that this crate sleeps on and nothing else parks by;
    // the callbacks neither panic nor park.
    let result = unsafe { park(key(word), still, || (), |_, _| (), DEFAULT_PARK_TOKEN, deadline) };
    result != ParkResult::TimedOut
}

/// As [`Platform::wake`](crate::Platform::wake), but that it takes the lock of the queue.
pub(super) fn wake(word: &WaitWord) {
    // SAFETY: as in `wait`.
    unsafe { unpark_one(key(word), |_| DEFAULT_UNPARK_TOKEN) };
}

/// As [`Platform::wake_all`](crate::Platform::wake_all), but that it takes the lock of the queue.
pub(super) fn wake_all(word: &WaitWord) {
    // SAFETY: as in `wait`.
    unsafe { unpark_all(key(word), DEFAULT_UNPARK_TOKEN) };
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::sync::TEST;

    #[test]
    fn a_word_that_has_changed_is_not_slept_on_and_a_deadline_ends_a_sleep() {
        let word = WaitWord::new(1);
        assert!(wait(&word, 0, None));
        assert!(!wait(&word, 1, Some(Instant::now() + Duration::from_millis(1))));
    }

    #[test]
    fn a_wake_after_the_change_ends_every_sleep() {
        static WORD: WaitWord = WaitWord::new(0);
        let (over, ended) = mpsc::channel();
        for _ in 0..2 {
            let over = over.clone();
            thread::spawn(move || {
                while WORD.value() == 0 {
                    wait(&WORD, 0, None);
                }
                over.send(()).unwrap();
            });
        }
        WORD.word().store(1, TEST);
        wake(&WORD);
        wake_all(&WORD);
        for _ in 0..2 {
            ended.recv_timeout(Duration::from_secs(60)).expect("it was woken");
        }
    }
}
