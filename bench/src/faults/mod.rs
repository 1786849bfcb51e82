//! The cost of a page fault, beside lower bounds: a signal handler, and a thread, that do nothing
//! but fill.
//!
//! Each round maps fresh memory and touches its pages once, in random order. What is measured is
//! the time of the touching reads.

mod bare;
mod plan;
mod round;

use std::error::Error;

use self::plan::{Case, From, Mode, Plan};
use self::round::Samples;
use crate::comparison::{Bound, Effort, Goal};
use crate::report::{Figures, Table};
use crate::summary::Summary;

/// # Errors
///
/// The kernel's: no userfaultfd, no memory, no temporary file.
pub(crate) fn measure(effort: &Effort) -> Result<Figures, Box<dyn Error>> {
    let samples = Plan { rounds: effort.rounds, pages: effort.pages }.run()?;
    let (mut tables, mut goals) = (Vec::new(), Vec::new());
    for (mode, by) in [(Mode::Signal, "by a signal handler"), (Mode::Thread, "by a thread")] {
        for granule in plan::GRANULES {
            let title = format!("{} KiB a fault, served {by}", granule >> 10);
            let mut times = Table::new(&title, "ns a page");
            let mut ratios = Table::new(format!("{title}: over the lower bound"), "ratio");
            let of_this = |case: &Case| case.mode == mode && case.granule == granule;
            for Samples { case, bare, pervma } in samples.iter().filter(|of| of_this(&of.case)) {
                let name = case.name();
                let ratio =
                    Summary::of(pervma.iter().zip(bare).map(|(pervma, bare)| pervma / bare));
                let figures = [("lower bound", bare), ("pervma", pervma)];
                times
                    .case(&name, figures.map(|(name, of)| (name, Summary::of(of.iter().copied()))));
                ratios.case(&name, [("pervma", ratio)]);
                if mode == Mode::Signal {
                    let what = format!("{title}, {name}: pervma over the lower bound");
                    goals.extend(
                        ratio.map(|ratio| Goal::new(what, Bound::AtMost(case.limit()), ratio)),
                    );
                }
            }
            tables.extend([times, ratios]);
        }
    }
    let about = "Page faults of this process: pages of fresh memory touched once, in random order. The \
                 lower bound is a signal handler or a thread that does nothing but fill. A case is where \
                 the bytes come from, and how many threads touch.";
    Ok((about, tables, goals))
}

impl Case {
    fn name(&self) -> String {
        let from = match self.from {
            From::Memory => "memory",
            From::File => "file",
        };
        format!("{from} x{}", self.threads)
    }
}
