//! The cost of a page fault, beside the floors: a signal handler, and a thread, that do nothing but
//! fill.
//!
//! Each round maps fresh memory and touches its pages once, in random order. What is measured is
//! the time of the touching reads.

mod bare;
mod plan;
mod round;

use std::error::Error;

use self::plan::{Case, From, Mode, Plan};
use crate::contest::{Bound, Effort, Goal};
use crate::report::Table;
use crate::rows::Figures;
use crate::summary::Summary;

/// What a fault in signal mode may take of the floor's time.
const LIMIT: f64 = 1.15;

/// # Errors
///
/// The kernel's: no userfaultfd, no memory, no temporary file.
pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let pages = if effort.rounds < Effort::FULL.rounds { 1024 } else { 4096 };
    let plan = Plan { rounds: effort.rounds, pages };
    let mut goals = Vec::new();
    let mut times = Vec::new();
    let mut ratios = Vec::new();
    for mode in [Mode::Signal, Mode::Thread] {
        let by = match mode {
            Mode::Signal => "by signal",
            Mode::Thread => "by a thread",
        };
        times.push((mode, Table::new(format!("served {by}"), "ns per page")));
        ratios.push((mode, Table::new(format!("served {by}: pervma over the floor"), "ratio")));
    }
    for sample in plan.run()? {
        let (case, name) = (sample.case, sample.case.name());
        let table = |tables: &mut Vec<(Mode, Table)>, figures: Vec<_>| {
            let table = tables.iter_mut().find(|(mode, _)| *mode == case.mode);
            if let Some((_, table)) = table {
                table.case(name.clone(), figures);
            }
        };
        let ratio = Summary::of(sample.pervma.iter().zip(&sample.bare).map(|(a, b)| a / b));
        let bare = Summary::of(sample.bare);
        table(&mut times, vec![("floor", bare), ("pervma", Summary::of(sample.pervma))]);
        table(&mut ratios, vec![("pervma", ratio)]);
        if case.mode == Mode::Signal
            && case.granule == plan::PAGE
            && let Some(ratio) = ratio
        {
            let what = format!("served by signal, {name}: pervma over the floor");
            goals.push(Goal::new(what, Bound::AtMost(LIMIT), ratio));
        }
    }
    let about = "Page faults of this process: pages of fresh memory touched once, in random order. The \
                 floor is a signal handler or a thread that does nothing but fill.";
    let tables = times.into_iter().chain(ratios).map(|(_, table)| table).collect();
    Ok((about, tables, goals))
}

impl Case {
    fn name(&self) -> String {
        let from = match self.from {
            From::Memory => "memory",
            From::File => "file",
        };
        format!("{}K {from} x{}", self.granule >> 10, self.threads)
    }
}
