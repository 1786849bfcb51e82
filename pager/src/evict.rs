//! The thread that keeps a region within its bound: it gives back what was filled longest ago.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::budget::Wanted;
use crate::live::Place;
use crate::mapping::{Backing, Mapping};
use crate::poller::aborting;
use crate::records::Records;
use crate::signal::SignalsBlocked;
use crate::source::Source;
use crate::write_back::{evict, runs};

/// The thread. Dropping it ends it.
pub(crate) struct Evictor {
    backing: Arc<Backing<dyn Source>>,
    thread: Option<JoinHandle<()>>,
}

impl Evictor {
    pub(crate) fn start(place: Arc<Place>, backing: Arc<Backing<dyn Source>>) -> io::Result<Self> {
        let own = Arc::clone(&backing);
        let thread = thread::Builder::new().name("pervma-evictor".to_owned());
        // A signal's handler could touch the region, for which this thread makes room.
        let _blocked = SignalsBlocked::new();
        let thread = thread.spawn(move || aborting(|| run(&place, &own)))?;
        Ok(Self { backing, thread: Some(thread) })
    }
}

impl Drop for Evictor {
    fn drop(&mut self) {
        let ours = self.backing.budget.as_ref().is_some_and(|budget| budget.wakeup.stop());
        if let Some(thread) = self.thread.take().filter(|_| ours) {
            // It has told of its panic, and nothing of it is used.
            let _ = thread.join();
        }
    }
}

fn run(place: &Place, backing: &Backing<dyn Source>) {
    let Some(budget) = &backing.budget else { return };
    let mut times = Vec::new();
    while budget.wakeup.wait() {
        let Wanted { pages, is_short } = budget.wanted();
        if pages > 0 && give_back_oldest(&place.lock(), pages, &mut times).is_err() && is_short {
            budget.give_up();
        }
    }
}

/// Nothing was given back, and not for want of pages.
struct Stuck;

/// Gives back so many pages, or as many as can be, those first that were filled first.
fn give_back_oldest(
    mapping: &Arc<Mapping>,
    wanted: usize,
    times: &mut Vec<u64>,
) -> Result<(), Stuck> {
    times.clear();
    times.extend(mapping.records.present_times());
    let wanted = wanted.div_ceil(mapping.backing.counted(1));
    let Some(last) = times.len().min(wanted).checked_sub(1) else {
        // What counts as resident is being filled.
        return Ok(());
    };
    let (_, &mut youngest, _) = times.select_nth_unstable(last);
    let all = mapping.offsets(0..mapping.records.len());
    let is_old = |records: &Records, page| records.is_older(page, youngest);
    let (mut gone, mut failed) = (0, false);
    for run in runs(mapping, &all, is_old) {
        match evict(mapping, &run) {
            Ok(pages) => gone += pages,
            Err(_) => failed = true,
        }
    }
    if failed && gone == 0 { Err(Stuck) } else { Ok(()) }
}
