//! Who of several workers waits for clients, and who serves what was read.
//!
//! One worker polls: it waits until clients have something to tell, serves what that is, and waits
//! again. If all of them waited, the kernel would wake another one for each fault: the thread that
//! was served faults again before its worker waits. So the others stand by. They serve faults that
//! were left to them, and one of them polls in the place of a worker that does not come back in
//! time, or that says that it will not.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A fault, as far as it matters who serves it.
pub(crate) trait Share {
    /// Whether it is worth waking a worker for, be it one.
    fn takes_long(&self) -> bool;
    /// Whether it may be served now.
    fn may_begin(&self) -> bool;
    /// Begins to serve it, if it may be served now.
    fn begin(&self) -> bool;
}

/// The turns of numbered workers, and faults that were read by one worker and left to others.
pub(crate) struct Turns<F> {
    state: Mutex<State<F>>,
    /// Wakes workers that stand by.
    standby: Condvar,
}

struct State<F> {
    is_over: bool,
    faults: VecDeque<F>,
    /// The worker that polls.
    poller: Option<usize>,
    /// Whether it waits for clients.
    is_waiting: bool,
    /// How often it had something to serve.
    turns: u64,
    /// Whether one that stands by looks after it again and again.
    is_watched: bool,
    /// Those that stand by until they are woken.
    asleep: usize,
}

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<F> {
    /// It serves a fault, which was begun.
    Serve(F),
    /// It waits for clients, and [begins its turn](Turns::begin) then.
    Poll,
    /// There is nothing for it to do, and it was not to stand by.
    Nothing,
    Over,
}

/// So many faults have to be left before it pays to wake a worker for them: that takes as long as
/// to serve one, and what the client tells is not read while another serves it.
const MANY: usize = 4;
/// A worker that polls is taken to be held up if what it was told once keeps it for so long.
const HELD_UP: Duration = Duration::from_millis(1);

impl<F: Share> Turns<F> {
    pub(crate) fn new() -> Self {
        let state = State {
            is_over: false,
            faults: VecDeque::new(),
            poller: None,
            is_waiting: false,
            turns: 0,
            is_watched: false,
            asleep: 0,
        };
        Self { state: Mutex::new(state), standby: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker is to do next. It may stand by until there is something.
    pub(crate) fn next(&self, number: usize, may_stand_by: bool) -> Next<F> {
        let mut state = self.lock();
        // The turn since which this worker watches the one that polls.
        let mut watched: Option<u64> = None;
        let next = loop {
            if state.is_over {
                break Next::Over;
            }
            if let Some(fault) = state.take() {
                break Next::Serve(fault);
            }
            let is_same_turn = watched == Some(state.turns);
            let is_held_up = is_same_turn && !state.is_waiting;
            if state.poller.is_none_or(|poller| poller == number) || is_held_up {
                state.poller = Some(number);
                state.is_waiting = true;
                break Next::Poll;
            }
            if !may_stand_by {
                break Next::Nothing;
            }
            if is_same_turn {
                // It waits, and says so when it has something to serve.
                watched = None;
                state.is_watched = false;
            }
            if watched.is_some() || !state.is_waiting && !state.is_watched {
                state.is_watched = true;
                watched = Some(state.turns);
                let waited = self.standby.wait_timeout(state, HELD_UP);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                state.asleep += 1;
                state = self.standby.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
        };
        if watched.is_some() {
            state.is_watched = false;
        }
        if state.lacks_watch() || state.is_worth_waking() {
            self.standby.notify_one();
        }
        next
    }

    /// The worker that polls has something to serve.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        state.is_waiting = false;
        state.turns += 1;
        if state.lacks_watch() {
            self.standby.notify_one();
        }
    }

    /// A worker, which may be the one that polls, does something that takes long: another one
    /// polls.
    pub(crate) fn hand_over(&self, number: usize) {
        let mut state = self.lock();
        if state.poller == Some(number) {
            state.poller = None;
            if state.has_standby() {
                self.standby.notify_one();
            }
        }
    }

    /// Leaves faults to workers that stand by, or to the next that has time. The caller asks for
    /// the next itself.
    pub(crate) fn leave(&self, faults: impl Iterator<Item = F>) {
        let mut state = self.lock();
        state.faults.extend(faults);
        if state.is_worth_waking() {
            self.standby.notify_one();
        }
    }

    /// A fault that a worker has left, which was begun.
    pub(crate) fn left(&self) -> Option<F> {
        self.lock().take()
    }

    /// Whether faults were left.
    pub(crate) fn are_left(&self) -> bool {
        !self.lock().faults.is_empty()
    }

    /// No worker has anything to do from now on.
    pub(crate) fn end(&self) {
        self.lock().is_over = true;
        self.standby.notify_all();
    }
}

impl<F: Share> State<F> {
    fn has_standby(&self) -> bool {
        self.is_watched || self.asleep > 0
    }

    /// Whether a worker is to watch the one that polls.
    fn lacks_watch(&self) -> bool {
        !self.is_waiting && !self.is_watched && self.asleep > 0
    }

    /// Takes the first fault that can be begun. Who ends one looks for the next.
    fn take(&mut self) -> Option<F> {
        let at = self.faults.iter().position(F::begin)?;
        self.faults.remove(at)
    }

    /// Whether to wake a worker for the faults that were left.
    fn is_worth_waking(&self) -> bool {
        let mut left = self.faults.iter().filter(|fault| fault.may_begin());
        let are_enough = match left.next() {
            Some(first) => first.takes_long() || left.nth(MANY - 2).is_some(),
            None => false,
        };
        are_enough && self.has_standby()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Fault {
        number: usize,
        takes_long: bool,
    }

    impl Share for Fault {
        fn takes_long(&self) -> bool {
            self.takes_long
        }

        fn may_begin(&self) -> bool {
            self.number != NEVER
        }

        fn begin(&self) -> bool {
            self.may_begin()
        }
    }

    /// The number of a fault that cannot be begun.
    const NEVER: usize = usize::MAX;

    fn short(number: usize) -> Fault {
        Fault { number, takes_long: false }
    }

    /// What a worker is told that stands by; it hands that to the test.
    fn stand_by(turns: &Turns<Fault>, number: usize) -> Next<Fault> {
        turns.next(number, true)
    }

    #[test]
    fn one_polls_as_long_as_it_comes_back() {
        let turns = Turns::<Fault>::new();
        for _ in 0..3 {
            assert_eq!(turns.next(0, true), Next::Poll);
            assert_eq!(turns.next(1, false), Next::Nothing);
            turns.begin();
            assert_eq!(turns.next(1, false), Next::Nothing);
        }
    }

    #[test]
    fn what_is_left_goes_first() {
        let turns = Turns::new();
        turns.leave([short(1), short(2)].into_iter());
        assert!(turns.are_left());
        assert_eq!(turns.next(0, true), Next::Serve(short(1)));
        assert_eq!(turns.left(), Some(short(2)));
        assert_eq!(turns.left(), None);
        assert_eq!(turns.next(0, true), Next::Poll);
    }

    #[test]
    fn what_may_not_be_begun_stays() {
        let turns = Turns::new();
        turns.leave([short(NEVER), short(1)].into_iter());
        assert_eq!(turns.next(0, true), Next::Serve(short(1)));
        assert_eq!(turns.next(0, true), Next::Poll);
        assert!(turns.are_left());
    }

    #[test]
    fn one_that_is_held_up_is_replaced_and_stands_by_then() {
        let turns = Turns::<Fault>::new();
        assert_eq!(turns.next(0, true), Next::Poll);
        thread::scope(|scope| {
            let other = scope.spawn(|| stand_by(&turns, 1));
            turns.begin();
            // It serves for ever.
            assert_eq!(other.join().unwrap(), Next::Poll);
        });
        assert_eq!(turns.next(0, false), Next::Nothing);
    }

    #[test]
    fn one_that_hands_over_is_replaced_and_others_do_not() {
        let turns = Turns::<Fault>::new();
        assert_eq!(turns.next(0, true), Next::Poll);
        turns.begin();
        turns.hand_over(1);
        assert_eq!(turns.next(1, false), Next::Nothing);
        turns.hand_over(0);
        assert_eq!(turns.next(1, false), Next::Poll);
    }

    #[test]
    fn who_waits_is_not_replaced() {
        let turns = Turns::<Fault>::new();
        assert_eq!(turns.next(0, true), Next::Poll);
        thread::scope(|scope| {
            let other = scope.spawn(|| stand_by(&turns, 1));
            thread::sleep(5 * HELD_UP);
            assert!(!other.is_finished());
            turns.end();
            assert_eq!(other.join().unwrap(), Next::Over);
        });
    }

    #[test]
    fn whoever_is_held_up_with_what_was_left_is_no_loss() {
        let turns = Turns::new();
        assert_eq!(turns.next(0, true), Next::Poll);
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            for number in 1..3 {
                let (turns, tell) = (&turns, tell.clone());
                scope.spawn(move || tell.send(stand_by(turns, number)));
            }
            turns.begin();
            // One of them takes it and never comes back; the other one polls.
            turns.leave([Fault { number: 7, takes_long: true }].into_iter());
            let mut next = [told.recv().unwrap(), told.recv().unwrap()];
            next.sort_by_key(|next| *next == Next::Poll);
            assert!(matches!(next[0], Next::Serve(_)), "{next:?}");
            assert_eq!(next[1], Next::Poll);
        });
    }

    /// Workers serve what a channel tells, as it is told to whoever polls; some of it holds a
    /// worker up, some is left to others, some is handed over. Not made here: workers that die.
    #[test]
    fn all_that_is_told_is_served() {
        use rand::rngs::SmallRng;
        use rand::{RngExt, SeedableRng};
        const COUNT: usize = 3_000;
        for workers in 1..=4 {
            let turns = Turns::new();
            let (tell, told) = mpsc::channel::<Vec<usize>>();
            let told = Mutex::new(told);
            let served = Mutex::new(vec![0; COUNT]);
            let serve = |fault: &Fault| served.lock().unwrap()[fault.number] += 1;
            thread::scope(|scope| {
                for number in 0..workers {
                    let (turns, told, serve) = (&turns, &told, &serve);
                    scope.spawn(move || {
                        let mut rng = SmallRng::seed_from_u64(number as u64);
                        loop {
                            let fault = match turns.next(number, true) {
                                Next::Serve(fault) => fault,
                                Next::Poll => {
                                    // Nobody else has it for longer than it takes to say so.
                                    let Ok(batch) = told.lock().unwrap().recv() else {
                                        return turns.end();
                                    };
                                    turns.begin();
                                    let mut batch = batch.into_iter();
                                    let Some(first) = batch.next() else { continue };
                                    let long = rng.random_bool(0.1);
                                    turns.leave(
                                        batch.map(|number| Fault { number, takes_long: long }),
                                    );
                                    short(first)
                                }
                                Next::Nothing => unreachable!("it may stand by"),
                                Next::Over => return,
                            };
                            match rng.random_range(0..100) {
                                0 => thread::sleep(3 * HELD_UP),
                                1..10 => turns.hand_over(number),
                                _ => {}
                            }
                            serve(&fault);
                        }
                    });
                }
                let mut rng = SmallRng::seed_from_u64(workers as u64 + 10);
                let mut at = 0;
                while at < COUNT {
                    let end = (at + rng.random_range(1..10)).min(COUNT);
                    tell.send((at..end).collect()).unwrap();
                    at = end;
                    if rng.random_bool(0.05) {
                        thread::sleep(HELD_UP);
                    }
                }
                drop(tell);
            });
            // What a worker was about to take when all was over is left.
            let left: Vec<_> = std::iter::from_fn(|| turns.left()).collect();
            left.iter().for_each(serve);
            assert!(served.into_inner().unwrap().iter().all(|times| *times == 1));
            assert!(left.len() < COUNT / 10, "{} of {COUNT} were not served", left.len());
        }
    }
}
