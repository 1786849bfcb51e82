//! The figures, as a table or as JSON.

use std::fmt;

use serde::Serialize;

use crate::machine::Machine;
use crate::plan::{Case, From, Mode, Plan};
use crate::round::Samples;
use crate::summary::Summary;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    #[serde(flatten)]
    plan: Plan,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    case: Case,
    /// ns per page.
    bare: Summary,
    /// ns per page.
    pervma: Summary,
    /// pervma's time over the floor's, round by round.
    ratio: Summary,
}

impl Report {
    pub(crate) fn new(machine: Machine, plan: Plan, samples: &[Samples]) -> Self {
        let rows = samples.iter().map(|sample| Row {
            case: sample.case,
            bare: Summary::of(sample.bare.iter().copied()),
            pervma: Summary::of(sample.pervma.iter().copied()),
            ratio: Summary::of(sample.pervma.iter().zip(&sample.bare).map(|(a, b)| a / b)),
        });
        Self { machine, plan, rows: rows.collect() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "ns per page of 4096 bytes, medians (quartiles) of {} rounds of {} pages in random \
             order;\nthe floor is a signal handler or a thread that does nothing but fill\n",
            self.plan.rounds, self.plan.pages
        )?;
        let head = ["served by", "granule", "source", "threads", "floor", "pervma", "ratio"];
        line(f, head.map(str::to_owned))?;
        for row in &self.rows {
            let Case { mode, granule, from, threads } = row.case;
            let served = match mode {
                Mode::Signal => "signal",
                Mode::Thread => "thread",
            };
            let source = match from {
                From::Memory => "memory",
                From::File => "file",
            };
            line(
                f,
                [
                    served.to_owned(),
                    format!("{}K", granule >> 10),
                    source.to_owned(),
                    threads.to_string(),
                    cell(&row.bare, 0),
                    cell(&row.pervma, 0),
                    cell(&row.ratio, 3),
                ],
            )?;
        }
        Ok(())
    }
}

fn cell(summary: &Summary, digits: usize) -> String {
    let Summary { median, lower_quartile, upper_quartile } = summary;
    format!("{median:.digits$} ({lower_quartile:.digits$}..{upper_quartile:.digits$})")
}

fn line(f: &mut fmt::Formatter<'_>, cells: [String; 7]) -> fmt::Result {
    let [served, granule, source, threads, bare, pervma, ratio] = cells;
    let text = format!("{served:10}{granule:9}{source:8}{threads:9}{bare:23}{pervma:23}{ratio}");
    writeln!(f, "{}", text.trim_end())
}
