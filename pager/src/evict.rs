//! Keeping a bound: one thread gives back what is clean, of all regions that share the bound, and
//! never waits for a source; a thread for each region writes to its source what is not.
//!
//! So what is clean can be given back whatever else is stuck: pages whose write-back fails, or is
//! slow, or never ends. Those are passed over. If a fault finds the bound reached and nothing clean
//! is left, they are all tried once more, and the access is refused only when that gives nothing
//! back.
//!
//! # What goes first
//!
//! No processor tells a process which of its pages are used. What tells it here is a touch that is
//! a fault: a part of the bound is for bytes of pages that have gone and are *kept* (`kept.rs`),
//! so that such a page comes back without its source. One that comes back, or is read again soon
//! after it had gone for good (`history.rs`), is *hot*: it is used more often than pages stay.
//!
//! Pages that are not hot go in the order in which they came as long as they are more than a
//! number; otherwise hot ones do, in that order. So what is used once does not push out what is
//! used often. The number grows when what was not hot comes again, and shrinks when what was hot
//! does ([`Parts`]): so it follows when what is used often changes.
//!
//! What comes back in vain costs a fault: so many pages are kept that those are no more than two
//! for each page that is read. When what is used fits in the bound, none is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::budget::{Budget, Wanted};
use crate::history::{Counted, Filled};
use crate::holds::Hold;
use crate::mapping::{Backing, Mapping, PAGE, Place};
use crate::records::{Kind, Records};
use crate::source::Source;
use crate::write_back::{evict_clean, runs, take_back_poison};
use crate::writer::{Pass, Retry, Writer};

/// How often a page that was stuck is tried again while the bound is kept without.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// So long a fault waits for pages that devices hold to go. They may be held for the system call
/// that waits: one that reads more at once than the bound allows would wait for itself.
const HELD_TOO_LONG: Duration = Duration::from_secs(1);

/// A region whose pages are given back to keep a bound.
pub(crate) struct Member {
    pub(crate) place: Arc<Place>,
    pub(crate) backing: Arc<Backing<dyn Source>>,
    /// Of a region that can be written.
    pub(crate) writer: Option<Arc<Writer>>,
}

/// The regions of a bound. Who changes it waits for the evictor to have done with all of them.
pub(crate) type Members = RwLock<Vec<Arc<Member>>>;

/// What the evictor's thread does.
pub(crate) fn run(budget: &Budget, members: &Members) {
    let mut rounds = Rounds {
        budget,
        new: VecDeque::new(),
        hot: VecDeque::new(),
        asked: HashMap::new(),
        retry_at: Instant::now(),
        held_since: None,
        in_vain: InVain::default(),
        parts: Parts::default(),
    };
    while budget.wakeup.wait() {
        let members = members.read().unwrap_or_else(PoisonError::into_inner);
        let regions = members.iter().map(|member| Region { member, mapping: member.place.read() });
        rounds.free_pages(&regions.collect::<Vec<_>>());
    }
}

/// A region, for a round.
struct Region<'a> {
    member: &'a Member,
    /// It stays where it is.
    mapping: RwLockReadGuard<'a, Arc<Mapping>>,
}

impl Region<'_> {
    fn number(&self) -> usize {
        self.member.backing.number
    }

    fn records(&self) -> &Records {
        &self.mapping.records
    }

    /// How many pages of a kind there are, counted in pages of the bound.
    fn counted(&self, kind: Kind) -> usize {
        self.member.backing.counted(self.records().number_of(kind))
    }

    /// How many pages wait to be written.
    fn pending(&self) -> usize {
        let pending = self.member.writer.as_ref().map_or(0, |writer| writer.pending());
        self.member.backing.counted(pending)
    }

    /// The granule of a page.
    fn granule(&self, page: usize) -> usize {
        self.mapping.granule_of(self.mapping.offsets(page..page + 1).start)
    }

    /// The granules of a run of pages.
    fn granules(&self, run: &Range<usize>) -> RangeInclusive<usize> {
        self.granule(run.start)..=self.granule(run.end - 1)
    }
}

/// Pages that were filled together, in a granule.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    filled: Filled,
    time: u64,
}

/// What the evictor keeps from one round to the next.
struct Rounds<'a> {
    budget: &'a Budget,
    /// What was filled, in order, and has not gone as far as is known: what had not gone shortly
    /// before, and what had.
    new: VecDeque<Candidate>,
    hot: VecDeque<Candidate>,
    /// The writers' passes for a fault that found the bound reached when nothing was clean, by
    /// regions.
    asked: HashMap<usize, u64>,
    /// When a page that was stuck is to be tried again.
    retry_at: Instant,
    /// Since when a device holds pages that a fault waits for.
    held_since: Option<Instant>,
    in_vain: InVain,
    parts: Parts,
}

/// How a bound is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    /// So many granules that are not hot stay before hot ones go.
    new: usize,
    /// So many pages are kept that have gone.
    kept: usize,
}

impl Parts {
    /// Follows what has come, when there are so many granules, and so many pages can be kept.
    fn learn(&mut self, came: Counted, granules: usize, most_kept: usize) {
        let [new, hot] = came.again;
        // What comes again and was hot tells of too few hot ones, and the other way round.
        self.new = (self.new + new).saturating_sub(3 * hot).clamp(granules / 32, granules * 3 / 4);
        // What is read pays for pages that come back in vain: no more than two for each.
        self.kept = (self.kept + 2 * came.read).saturating_sub(came.kept).min(most_kept);
    }
}

/// What came of giving pages back.
#[derive(Default)]
struct Given {
    /// So many went.
    pages: usize,
    /// The kernel, or the address space, has refused some.
    was_refused: bool,
}

/// Which pages are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// What has its turn: clean, or to be written first.
    InTurn,
    /// What is clean.
    Clean,
}

/// What was chosen: runs of pages, of the region at this place among all.
#[derive(Default)]
struct Chosen {
    clean: Vec<(usize, Range<usize>)>,
    written: Vec<(usize, Range<usize>)>,
}

impl Rounds<'_> {
    fn free_pages(&mut self, regions: &[Region<'_>]) {
        self.learn(regions);
        for region in regions {
            if region.records().number_of(Kind::Refused) > 0 {
                admit_again(&region.mapping);
            }
        }
        let fixed = regions.iter().map(|region| region.counted(Kind::Fixed)).sum();
        let wanted = self.budget.wanted(fixed);
        if wanted.is_new {
            // What was tried for others is to be tried once more.
            self.asked.clear();
        }
        let all = self.new.len() + self.hot.len();
        let most_kept = self.budget.kept.most().saturating_sub(fixed);
        self.parts.learn(self.budget.came.take(), all, most_kept);
        let mut must_all_look = false;
        if wanted.pages > 0 || wanted.short > 0 {
            must_all_look = self.make_room(regions, wanted);
        }
        self.budget.wake(must_all_look);
    }

    /// Gives back so many pages. Whether some access is to be told that it is to fail.
    fn make_room(&mut self, regions: &[Region<'_>], wanted: Wanted) -> bool {
        let Wanted { short, is_insistent, limit, .. } = wanted;
        let pages = wanted.pages.max(short);
        // Some may be about to go, and of some that go the bytes stay.
        let most_kept = (self.budget.kept.pages() + pages).min(self.parts.kept);
        let kept = self.budget.keep(most_kept);
        let going = kept + regions.iter().map(Region::pending).sum::<usize>();
        let staying = most_kept.saturating_sub(self.budget.kept.pages());
        let wanted = (pages + staying).saturating_sub(going);
        let chosen = self.choose(regions, wanted, Choice::InTurn);
        self.ask_for(regions, chosen.written);
        let mut given = self.give_back(regions, chosen.clean);
        if short > 0 && given.pages == 0 {
            // Clean ones that are younger than what is being written, or cannot be.
            let chosen = self.choose(regions, pages, Choice::Clean);
            given = self.give_back(regions, chosen.clean);
        }
        given.pages += kept;
        if short > 0 && given.pages == 0 {
            given.pages = self.budget.keep_fewer(short);
        }
        if given.pages > 0 {
            self.asked.clear();
            self.held_since = None;
            // Where there is room for what an instruction needs, it has it sooner or later.
            let is_in_vain = short > 0 && is_tight(regions, limit) && self.in_vain.is_too_often();
            if is_in_vain {
                self.budget.is_in_vain();
            }
            return is_in_vain;
        }
        if short > 0 && (given.was_refused || self.is_stuck(regions)) {
            self.held_since = None;
            if !(is_insistent && let_go_what_is_ahead(regions)) {
                self.budget.give_up(short, is_insistent);
            }
            return true;
        }
        false
    }

    /// Notes what was filled since the last round.
    fn learn(&mut self, regions: &[Region<'_>]) {
        let places: HashMap<usize, usize> = (0..regions.len())
            .map(|place| (regions[place].number() % Filled::REGIONS, place))
            .collect();
        let (new, hot) = (&mut self.new, &mut self.hot);
        let is_all = self.budget.fills.take(|filled| {
            let Some(&place) = places.get(&filled.region) else { return };
            let records = regions[place].records();
            if filled.page < records.len()
                && let Some(filling) = records.filled_at(filled.page)
            {
                let filled = Filled { region: regions[place].number(), ..filled };
                let queue = if filling.is_hot { &mut *hot } else { &mut *new };
                queue.push_back(Candidate { filled, time: filling.time });
            }
        });
        // What was discarded and filled again is there twice.
        let is_too_long = self.new.len() + self.hot.len() > 2 * self.budget.pages();
        if !is_all || is_too_long {
            self.look(regions);
        }
    }

    /// Looks at all records for what is present.
    fn look(&mut self, regions: &[Region<'_>]) {
        self.new.clear();
        self.hot.clear();
        for region in regions {
            let (region_number, records) = (region.number(), region.records());
            let mut last = None;
            for run in records.runs(0..records.len(), Records::is_present) {
                for page in run {
                    let Some(filling) = records.filled_at(page) else { continue };
                    let granule = (region.granule(page), filling.time);
                    if last.replace(granule) == Some(granule) {
                        continue;
                    }
                    let filled = Filled { region: region_number, page };
                    let queue = if filling.is_hot { &mut self.hot } else { &mut self.new };
                    queue.push_back(Candidate { filled, time: filling.time });
                }
            }
        }
        for queue in [&mut self.new, &mut self.hot] {
            queue.make_contiguous().sort_unstable_by_key(|candidate| candidate.time);
        }
    }

    /// The next of what may go: of the hot ones only if others are few.
    fn next(&mut self) -> Option<(Candidate, bool)> {
        let is_hot = self.new.len() <= self.parts.new && !self.hot.is_empty();
        let queue = if is_hot { &mut self.hot } else { &mut self.new };
        queue.pop_front().map(|candidate| (candidate, is_hot))
    }

    /// Chooses so many pages, as far as there are.
    fn choose(&mut self, regions: &[Region<'_>], pages: usize, choice: Choice) -> Chosen {
        let (mut chosen, mut count) = (Chosen::default(), 0);
        let mut passed_over = Vec::new();
        let (mut has_looked, mut seen) = (false, HashSet::new());
        while count < pages {
            let Some((candidate, is_hot)) = self.next() else {
                if has_looked {
                    break;
                }
                // What was missed, what was stuck and is no longer, what has moved.
                has_looked = true;
                self.look(regions);
                self.new.retain(|candidate| !seen.contains(&candidate.time));
                self.hot.retain(|candidate| !seen.contains(&candidate.time));
                continue;
            };
            seen.insert(candidate.time);
            let place = regions.iter().position(|it| it.number() == candidate.filled.region);
            let Some(place) = place else { continue };
            let (region, page) = (&regions[place], candidate.filled.page);
            let records = region.records();
            let granule = region.mapping.granule_pages(page);
            let is_of_it = |page: &usize| {
                records.filled_at(*page).is_some_and(|filling| filling.time == candidate.time)
            };
            let end = granule.end.min(records.len());
            let of_it = (page..end).filter(is_of_it).collect::<Vec<_>>();
            let may_go = |page: &usize| match choice {
                Choice::InTurn => !records.is_stuck(*page) && !records.is_held(*page),
                Choice::Clean => records.is_evictable(*page),
            };
            let going: Vec<_> = of_it.iter().copied().filter(may_go).collect();
            if going.len() < of_it.len() {
                // Some of it stays, and has its turn again.
                passed_over.push((candidate, is_hot));
            }
            let unit = region.member.backing.counted(1);
            for page in going {
                count += unit;
                let of_kind =
                    if records.is_dirty(page) { &mut chosen.written } else { &mut chosen.clean };
                of_kind.push((place, page..page + 1));
            }
        }
        match choice {
            // They go to the end, or to the front again.
            Choice::InTurn => {
                for (candidate, is_hot) in passed_over {
                    let queue = if is_hot { &mut self.hot } else { &mut self.new };
                    queue.push_back(candidate);
                }
            }
            Choice::Clean => {
                for (candidate, is_hot) in passed_over.into_iter().rev() {
                    let queue = if is_hot { &mut self.hot } else { &mut self.new };
                    queue.push_front(candidate);
                }
            }
        }
        for of_kind in [&mut chosen.clean, &mut chosen.written] {
            *of_kind = merged(std::mem::take(of_kind));
        }
        chosen
    }

    /// Has the writers write what is not clean, in the background, and perhaps try a page again
    /// whose write-back failed.
    fn ask_for(&mut self, regions: &[Region<'_>], written: Vec<(usize, Range<usize>)>) {
        let now = Instant::now();
        let tries_again = now >= self.retry_at;
        let mut by_regions: Vec<_> = regions.iter().map(|_| Vec::new()).collect();
        for (place, run) in written {
            by_regions[place].push(run);
        }
        for (region, runs) in regions.iter().zip(by_regions) {
            let Some(writer) = &region.member.writer else { continue };
            let retries = tries_again && region.records().number_of(Kind::Stuck) > 0;
            if retries {
                self.retry_at = now + RETRY_AFTER;
            }
            if retries || !runs.is_empty() {
                writer.ask(runs, if retries { Retry::One } else { Retry::None });
            }
        }
    }

    /// Gives back what is clean.
    fn give_back(&mut self, regions: &[Region<'_>], clean: Vec<(usize, Range<usize>)>) -> Given {
        let mut given = Given::default();
        let mut by_regions: Vec<Vec<_>> = regions.iter().map(|_| Vec::new()).collect();
        for (place, pages) in clean {
            let region = &regions[place];
            for granule in region.granules(&pages) {
                self.in_vain.note((region.number(), granule));
            }
            let part = region.mapping.offsets(pages);
            by_regions[place].extend(runs(&region.mapping, &part, Records::is_evictable));
        }
        for (region, runs) in regions.iter().zip(by_regions) {
            // Nothing in a region that is not written is kept from faults for long, so many runs
            // are given back at once: threads that fault wait once for all of them. In others a run
            // that is being written may lie between.
            let at_once = if region.member.backing.is_tracked { 1 } else { 64 };
            for runs in runs.chunks(at_once) {
                match evict_clean(&region.mapping, runs) {
                    Ok(pages) => given.pages += pages,
                    Err(_) => given.was_refused = true,
                }
            }
        }
        given
    }

    /// Whether nothing can be given back, when nothing was although a fault found the bound
    /// reached.
    fn is_stuck(&mut self, regions: &[Region<'_>]) -> bool {
        let staying: usize = regions.iter().map(|region| region.counted(Kind::Staying)).sum();
        if staying < self.budget.resident() {
            // Some is clean by now, or is being filled.
            return false;
        }
        let mut passes = Vec::new();
        for region in regions {
            let Some(writer) = &region.member.writer else { continue };
            let number = region.number();
            let ask = || writer.ask(Vec::new(), Retry::All);
            passes.push(writer.outcome(*self.asked.entry(number).or_insert_with(ask)));
        }
        if passes.is_empty() || passes.contains(&Pass::Running) {
            return false;
        }
        self.asked.clear();
        if passes.contains(&Pass::Useful) {
            self.held_since = None;
            return false;
        }
        !passes.contains(&Pass::Held)
            || self.held_since.get_or_insert_with(Instant::now).elapsed() > HELD_TOO_LONG
    }
}

/// Whether what can go of a bound of so many pages is less than an instruction may touch.
fn is_tight(regions: &[Region<'_>], limit: usize) -> bool {
    let staying: usize = regions.iter().map(|region| region.counted(Kind::Staying)).sum();
    let granules = regions.iter().map(|region| region.member.backing.granule / PAGE);
    limit.saturating_sub(staying) < granules.max().unwrap_or(1).saturating_mul(InVain::FEW)
}

/// The same pages, in order and in as few runs as they make.
fn merged(mut runs: Vec<(usize, Range<usize>)>) -> Vec<(usize, Range<usize>)> {
    runs.sort_unstable_by_key(|(place, run)| (*place, run.start));
    let mut merged: Vec<(usize, Range<usize>)> = Vec::new();
    for (place, run) in runs {
        match merged.last_mut() {
            Some((last_place, last)) if *last_place == place && last.end == run.start => {
                last.end = run.end;
            }
            _ => merged.push((place, run)),
        }
    }
    merged
}

/// Takes back the poison of pages for which the bound was reached: accesses are faults again, and
/// wait for pages to go.
fn admit_again(mapping: &Arc<Mapping>) {
    for run in runs(mapping, &mapping.whole(), Records::was_refused) {
        // If it cannot be done now, the next access asks for it again.
        let _ = take_back_poison(mapping, &run);
    }
}

/// Has what was filled ahead held no longer, so that no access fails for it. Whether anything was:
/// the access asks again then.
fn let_go_what_is_ahead(regions: &[Region<'_>]) -> bool {
    let mut pages = 0;
    for Region { member, mapping } in regions {
        let let_go = mapping.holds.end_all(Hold::AgainstEviction, &mapping.records);
        if let Some(share) = &member.backing.share {
            share.let_go(member.backing.counted(let_go));
        }
        pages += let_go;
    }
    pages > 0
}

/// Notices what accesses do that need more pages at once than can be present, as an instruction
/// that touches two pages does when only one can be given back: each time one comes the other has
/// gone, without an end. A loop does the same that touches one after the other; which it is, the
/// thread knows (`signal/mod.rs`).
#[derive(Default)]
struct InVain {
    /// Which granules went last, of which regions.
    recent: [(usize, usize); Self::FEW],
    next: usize,
    /// How often in a row one of them went again.
    times: u32,
}

impl InVain {
    /// No instruction touches more.
    const FEW: usize = 4;
    /// What a loop may need that compares two pages byte by byte.
    const TOO_OFTEN: u32 = 10_000;

    fn note(&mut self, granule: (usize, usize)) {
        if self.recent.contains(&granule) {
            self.times = self.times.saturating_add(1);
        } else {
            self.recent[self.next] = granule;
            self.next = (self.next + 1) % Self::FEW;
            self.times = 0;
        }
    }

    /// Whether some access may be one of those. It is so again soon, until others go.
    fn is_too_often(&mut self) -> bool {
        let is_too_often = self.times > Self::TOO_OFTEN;
        if is_too_often {
            // An odd number of times later: perhaps at another of the pages.
            self.times = Self::TOO_OFTEN - 100;
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
                in_vain.note((1, 7 + time % granules));
                in_vain.is_too_often()
            })
        };
        assert!((1..=4).all(|granules| goes(&mut in_vain, granules)));
        assert!((5..=9).all(|granules| !goes(&mut in_vain, granules)));
    }

    #[test]
    fn runs_are_as_few_as_pages_make() {
        let runs = [(1, 5..6), (0, 9..10), (1, 4..5), (0, 8..9), (0, 3..4)];
        assert_eq!(merged(runs.into()), [(0, 3..4), (0, 8..10), (1, 4..6)]);
    }
}
