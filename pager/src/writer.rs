//! The thread that writes to the source what has to go to keep a bound, and gives it back then.
//!
//! It works in passes, each for what was asked until it began, and no thread waits for it but
//! accesses that find the bound reached.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::failure::WriteBackFailure;
use crate::mapping::{Backing, Mapping, Place};
use crate::records::Records;
use crate::source::Source;
use crate::stats::Shard;
use crate::write_back::{evict_dirty, runs};

/// What the thread is asked for, and what has come of it.
#[derive(Default)]
pub(crate) struct Writer {
    requests: Mutex<Requests>,
    changed: Condvar,
    last_failure: Mutex<Option<WriteBackFailure>>,
}

#[derive(Default)]
struct Requests {
    /// Runs of pages that are to be written in the next pass.
    runs: Vec<Range<usize>>,
    /// So many pages are to be written, or were not tried yet.
    pending: usize,
    is_asked: bool,
    retry: Retry,
    begun: u64,
    ended: u64,
    /// The last pass that tried all that was written and could give nothing back.
    barren: u64,
    /// In that pass some pages were held for a device.
    was_held: bool,
    is_over: bool,
}

/// Which of the pages whose write-back has failed before are tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Retry {
    #[default]
    None,
    /// The next one in turn, so that none is forgotten.
    One,
    /// All of them, for an access that finds the bound reached otherwise.
    All,
}

/// Whether a page was written, and may be written back and go as far as is known.
fn is_to_write(records: &Records, page: usize) -> bool {
    records.is_dirty(page) && !records.is_stuck(page) && !records.is_held(page)
}

/// How a pass is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Running,
    /// It has tried everything that was written, and nothing could be given back.
    Barren,
    /// As before; but some of it is held for a device, which will let it go.
    Held,
    /// Something has gone, or there was nothing to write.
    Useful,
}

impl Writer {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for what was written of some pages. The number of the pass that will see to it.
    pub(crate) fn ask(&self, runs: Vec<Range<usize>>, retry: Retry) -> u64 {
        let mut requests = self.requests();
        requests.pending += runs.iter().map(Range::len).sum::<usize>();
        requests.runs.extend(runs);
        requests.is_asked = true;
        requests.retry = requests.retry.max(retry);
        let pass = requests.begun + 1;
        drop(requests);
        self.changed.notify_one();
        pass
    }

    /// How many pages that were asked for were not tried yet.
    pub(crate) fn pending(&self) -> usize {
        self.requests().pending
    }

    pub(crate) fn outcome(&self, pass: u64) -> Pass {
        let requests = self.requests();
        if requests.ended < pass {
            Pass::Running
        } else if requests.barren >= pass {
            if requests.was_held { Pass::Held } else { Pass::Barren }
        } else {
            Pass::Useful
        }
    }

    pub(crate) fn stop(&self) {
        self.requests().is_over = true;
        self.changed.notify_one();
    }

    pub(crate) fn last_failure(&self) -> Option<WriteBackFailure> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the thread does.
    pub(crate) fn run(&self, place: &Place, backing: &Backing<dyn Source>) {
        let mut first_retry = 0;
        while let Some((runs, retry)) = self.begin() {
            let mut pass =
                Work { writer: self, backing, has_failed: false, was_held: false, gone: 0 };
            pass.write(&place.read(), runs, retry, &mut first_retry);
            let is_barren =
                retry == Retry::All && pass.gone == 0 && (pass.has_failed || pass.was_held);
            let mut requests = self.requests();
            requests.ended = requests.begun;
            if is_barren {
                requests.barren = requests.begun;
                requests.was_held = pass.was_held;
            }
            drop(requests);
            if let Some(share) = &backing.share {
                // The evictor may wait for how it went.
                share.raise();
            }
        }
    }

    /// Waits until something is asked for; `None` when it is time to end.
    fn begin(&self) -> Option<(Vec<Range<usize>>, Retry)> {
        let is_idle = |requests: &mut Requests| !requests.is_asked && !requests.is_over;
        let requests = self.changed.wait_while(self.requests(), is_idle);
        let mut requests = requests.unwrap_or_else(PoisonError::into_inner);
        if requests.is_over {
            return None;
        }
        requests.begun += 1;
        requests.is_asked = false;
        Some((std::mem::take(&mut requests.runs), std::mem::take(&mut requests.retry)))
    }
}

/// One pass.
struct Work<'a> {
    writer: &'a Writer,
    backing: &'a Backing<dyn Source>,
    has_failed: bool,
    /// Some pages were held for a device.
    was_held: bool,
    /// Pages.
    gone: usize,
}

impl Work<'_> {
    /// Writes and gives back pages, or all if all are tried, and then pages that have failed
    /// before. Each of those by itself, since one that cannot be written fails those that are
    /// written with it.
    fn write(
        &mut self,
        mapping: &Arc<Mapping>,
        asked: Vec<Range<usize>>,
        retry: Retry,
        first_retry: &mut usize,
    ) {
        for pages in asked {
            let of_it = pages.len();
            // The region may have moved, and become shorter.
            let pages = pages.start..pages.end.min(mapping.records.len());
            if !pages.is_empty() {
                for run in runs(mapping, &mapping.offsets(pages), is_to_write) {
                    self.evict(mapping, run);
                }
            }
            self.writer.requests().pending -= of_it;
        }
        if retry == Retry::All {
            for run in runs(mapping, &mapping.whole(), is_to_write) {
                self.evict(mapping, run);
            }
        }
        let most = match retry {
            Retry::None => 0,
            Retry::One => 1,
            Retry::All => usize::MAX,
        };
        let pages = mapping.records.len();
        let first = (*first_retry).min(pages);
        let failed = |records: &Records, page| records.is_stuck(page) && !records.is_held(page);
        let in_turn = [first..pages, 0..first].map(|pages| mapping.records.runs(pages, failed));
        for page in in_turn.into_iter().flatten().flatten().take(most) {
            self.evict(mapping, mapping.offsets(page..page + 1));
            *first_retry = page + 1;
        }
    }

    fn evict(&mut self, mapping: &Arc<Mapping>, run: Range<usize>) {
        if self.writer.requests().is_over {
            return;
        }
        let written = evict_dirty(mapping, &run);
        self.gone += written.gone;
        self.was_held |= written.was_held;
        if let Some(error) = written.error {
            self.has_failed = true;
            self.failed(run, error);
        }
    }

    fn failed(&self, range: Range<usize>, error: Error) {
        self.backing.counters.mine().write_back_failures.add(1);
        Shard::mine().count_write_back_failure();
        let failure = WriteBackFailure::new(range, error);
        let last = &self.writer.last_failure;
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
        if let Some(hook) = &self.backing.on_write_back_failure {
            hook(&failure);
        }
    }
}
