//! Keeping a region within its bound: one thread gives back what is clean and never waits for the
//! source, another writes to the source what is not.
//!
//! So what is clean can be given back whatever else is stuck: pages whose write-back fails, or is
//! slow, or never ends. What was filled longest ago goes first. Pages whose write-back has failed
//! are passed over. If a fault finds the bound reached and nothing clean is left, they are all
//! tried once more, and the access is refused only when that gives nothing back.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::budget::{Budget, Wanted};
use crate::failure::WriteBackFailure;
use crate::holds::Hold;
use crate::mapping::{Backing, Mapping, Place};
use crate::poller::aborting;
use crate::records::Records;
use crate::signal::SignalsBlocked;
use crate::source::Source;
use crate::write_back::{evict_clean, runs, take_back_poison};
use crate::writer::{Pass, Retry, Writer, is_to_write};

/// How often a page that was stuck is tried again while the bound is kept without.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// So long a fault waits for pages that devices hold to go. They may be held for the system call
/// that waits: one that reads more at once than the bound allows would wait for itself.
const HELD_TOO_LONG: Duration = Duration::from_secs(1);

/// The threads. Dropping it ends them.
pub(crate) struct Evictor {
    backing: Arc<Backing<dyn Source>>,
    /// Of a region that can be written.
    writer: Option<Arc<Writer>>,
    threads: Vec<JoinHandle<()>>,
}

impl Evictor {
    pub(crate) fn start(
        place: &Arc<Place>,
        backing: &Arc<Backing<dyn Source>>,
    ) -> io::Result<Self> {
        let writer = backing.is_tracked.then(Arc::<Writer>::default);
        // From here on, what fails is undone by its drop.
        let mut evictor = Self { backing: Arc::clone(backing), writer, threads: Vec::new() };
        let (place_too, backing_too) = (Arc::clone(place), Arc::clone(backing));
        let writer = evictor.writer.clone();
        evictor
            .spawn("pervma-evictor", move || run(&place_too, &backing_too, writer.as_deref()))?;
        if let Some(writer) = evictor.writer.clone() {
            let (place, backing) = (Arc::clone(place), Arc::clone(backing));
            evictor.spawn("pervma-writer", move || writer.run(&place, &backing))?;
        }
        Ok(evictor)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned());
        // A signal's handler could touch the region, whose pages this thread gives back.
        let _blocked = SignalsBlocked::new()?;
        self.threads.push(thread.spawn(move || aborting(work))?);
        Ok(())
    }

    /// The last failure of a write-back that the bound needed, even if it is over by now.
    pub(crate) fn last_failure(&self) -> Option<WriteBackFailure> {
        self.writer.as_ref().and_then(|writer| writer.last_failure())
    }
}

impl Drop for Evictor {
    fn drop(&mut self) {
        if !self.backing.budget.as_ref().is_some_and(|budget| budget.wakeup.stop()) {
            // In a forked child: the threads are its parent's, and so may be the writer's lock.
            return;
        }
        if let Some(writer) = &self.writer {
            writer.stop();
        }
        for thread in self.threads.drain(..) {
            // It has told of its panic, and nothing of it is used.
            let _ = thread.join();
        }
    }
}

fn run(place: &Place, backing: &Backing<dyn Source>, writer: Option<&Writer>) {
    let Some(budget) = &backing.budget else { return };
    let mut rounds = Rounds {
        budget,
        writer,
        times: Vec::new(),
        asked: None,
        retry_at: Instant::now(),
        held_since: None,
        in_vain: InVain::default(),
    };
    while budget.wakeup.wait() {
        rounds.free_pages(&place.read());
    }
}

/// What the evictor keeps from one round to the next.
struct Rounds<'a> {
    budget: &'a Budget,
    writer: Option<&'a Writer>,
    /// Memory for a choice.
    times: Vec<u64>,
    /// The writer's pass for a fault that found the bound reached when nothing was clean.
    asked: Option<u64>,
    /// When a page that was stuck is to be tried again.
    retry_at: Instant,
    /// Since when a device holds pages that a fault waits for.
    held_since: Option<Instant>,
    in_vain: InVain,
}

/// How many pages there are of a kind.
#[derive(Default)]
struct Survey {
    /// Their write-back has failed.
    stuck: usize,
    /// They are held.
    held: usize,
    /// The bound was reached.
    refused: usize,
}

/// What came of giving pages back.
#[derive(Default)]
struct Given {
    /// So many went.
    pages: usize,
    /// The kernel, or the address space, has refused some.
    was_refused: bool,
}

impl Rounds<'_> {
    fn free_pages(&mut self, mapping: &Arc<Mapping>) {
        let Survey { stuck, held, refused } = self.survey(mapping);
        if refused > 0 {
            self.admit_again(mapping);
        }
        let Wanted { pages, short, is_new, is_insistent } =
            self.budget.wanted(mapping.backing.counted(stuck + held));
        if is_new {
            // What was tried for others is to be tried once more.
            self.asked = None;
        }
        if pages == 0 && short == 0 {
            return;
        }
        let pages = pages.max(short).div_ceil(mapping.backing.counted(1));
        let mut given = Given::default();
        if let Some(until) = self.oldest(pages) {
            given = self.give_back(mapping, until);
            self.ask_for(mapping, until, stuck > 0);
        }
        if short > 0 && given.pages == 0 {
            // Clean ones that are younger than what is being written, or cannot be.
            self.times.clear();
            self.times.extend(mapping.records.times(Records::is_evictable));
            if let Some(until) = self.oldest(pages) {
                given = self.give_back(mapping, until);
            }
        }
        if given.pages > 0 {
            (self.asked, self.held_since) = (None, None);
            if self.in_vain.is_too_often() {
                self.budget.is_in_vain();
            }
        } else if short > 0 && (given.was_refused || self.is_stuck(mapping)) {
            self.held_since = None;
            if !(is_insistent && self.let_go_what_is_ahead(mapping)) {
                self.budget.give_up(short, is_insistent);
            }
        }
    }

    /// Has what was filled ahead held no longer, so that no access fails for it. Whether anything
    /// was: the access asks again then.
    fn let_go_what_is_ahead(&mut self, mapping: &Mapping) -> bool {
        let pages = mapping.holds.end_all(Hold::AgainstEviction, &mapping.records);
        self.budget.let_go(mapping.backing.counted(pages));
        pages > 0
    }

    /// Notes the times of what is present and may go, and counts what is not.
    fn survey(&mut self, mapping: &Mapping) -> Survey {
        self.times.clear();
        let mut survey = Survey::default();
        let may_go = |records: &Records, page| {
            let (is_stuck, is_present) = (records.is_stuck(page), records.is_present(page));
            let is_held = is_present && !is_stuck && records.is_held(page);
            survey.stuck += usize::from(is_stuck);
            survey.held += usize::from(is_held);
            survey.refused += usize::from(records.was_refused(page));
            is_present && !is_stuck && !is_held
        };
        self.times.extend(mapping.records.times(may_go));
        survey
    }

    /// Takes back the poison of pages for which the bound was reached: accesses are faults again,
    /// and wait for pages to go.
    fn admit_again(&self, mapping: &Arc<Mapping>) {
        for run in runs(mapping, &mapping.whole(), Records::was_refused) {
            // If it cannot be done now, the next access asks for it again.
            let _ = take_back_poison(mapping, &run);
        }
    }

    /// The time up to which so many of the noted pages were filled, or all of them; `None` if there
    /// is none.
    fn oldest(&mut self, pages: usize) -> Option<u64> {
        let last = self.times.len().min(pages).checked_sub(1)?;
        let (_, &mut until, _) = self.times.select_nth_unstable(last);
        Some(until)
    }

    /// Has the writer write what was filled up to then and is not clean, in the background, and
    /// perhaps try one again whose write-back failed.
    fn ask_for(&mut self, mapping: &Mapping, until: u64, has_stuck: bool) {
        let Some(writer) = self.writer else { return };
        let now = Instant::now();
        if has_stuck && now >= self.retry_at {
            self.retry_at = now + RETRY_AFTER;
            writer.ask(until, Retry::One);
        } else if runs(mapping, &mapping.whole(), is_to_write(until)).next().is_some() {
            writer.ask(until, Retry::None);
        }
    }

    /// Gives back what is clean and was filled up to then.
    fn give_back(&mut self, mapping: &Arc<Mapping>, until: u64) -> Given {
        let mut given = Given::default();
        let is_wanted =
            |records: &Records, page| records.is_evictable(page) && records.is_older(page, until);
        for run in runs(mapping, &mapping.whole(), is_wanted) {
            match evict_clean(mapping, &run) {
                Ok(pages) => given.pages += pages,
                Err(_) => given.was_refused = true,
            }
            self.in_vain.note(run.start / mapping.backing.granule);
        }
        given
    }

    /// Whether nothing can be given back, when nothing was although a fault found the bound
    /// reached.
    fn is_stuck(&mut self, mapping: &Mapping) -> bool {
        let Some(writer) = self.writer else {
            // What counts as resident is being filled.
            return false;
        };
        let stays = |records: &Records, page| {
            records.is_dirty(page) || records.is_present(page) && records.is_held(page)
        };
        let staying = mapping.records.count(stays);
        if mapping.backing.counted(staying) < self.budget.resident() {
            // Some is clean by now, or is being filled.
            return false;
        }
        let pass = *self.asked.get_or_insert_with(|| writer.ask(u64::MAX, Retry::All));
        let outcome = writer.outcome(pass);
        if outcome != Pass::Running {
            self.asked = None;
        }
        match outcome {
            Pass::Running => false,
            Pass::Barren => true,
            Pass::Held => {
                self.held_since.get_or_insert_with(Instant::now).elapsed() > HELD_TOO_LONG
            }
            Pass::Useful => {
                self.held_since = None;
                false
            }
        }
    }
}

/// Notices accesses that need more pages at once than can be present, as an instruction that
/// touches two pages does when only one can be given back: each time one comes the other has gone,
/// without an end.
#[derive(Default)]
struct InVain {
    /// Which granules went last.
    recent: [usize; Self::FEW],
    next: usize,
    /// How often in a row one of them went again.
    times: u32,
}

impl InVain {
    /// No instruction touches more.
    const FEW: usize = 4;
    /// More than a loop needs that compares two pages byte by byte.
    const TOO_OFTEN: u32 = 10_000;

    fn note(&mut self, granule: usize) {
        if self.recent.contains(&granule) {
            self.times += 1;
        } else {
            self.recent[self.next] = granule;
            self.next = (self.next + 1) % Self::FEW;
            self.times = 0;
        }
    }

    /// Whether some access is to fail. It begins anew then.
    fn is_too_often(&mut self) -> bool {
        let is_too_often = self.times > Self::TOO_OFTEN;
        if is_too_often {
            self.times = 0;
        }
        is_too_often
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_goes_again_and_again_goes_in_vain() {
        let mut in_vain = InVain::default();
        let goes = |in_vain: &mut InVain, granules: usize| {
            (0..=2 * InVain::TOO_OFTEN as usize).any(|time| {
                in_vain.note(7 + time % granules);
                in_vain.is_too_often()
            })
        };
        assert!((1..=4).all(|granules| goes(&mut in_vain, granules)));
        assert!((5..=9).all(|granules| !goes(&mut in_vain, granules)));
    }
}
