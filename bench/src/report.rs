//! The figures, as a table or as JSON.

use std::fmt;

use serde::Serialize;

use crate::machine::Machine;
use crate::round::{Floor, Plan, Samples};
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
    floor: Floor,
    threads: usize,
    /// ns per fault.
    bare: Summary,
    /// ns per fault.
    pervma: Summary,
    /// pervma's time over the bare handler's, round by round.
    ratio: Summary,
}

impl Report {
    pub(crate) fn new(machine: Machine, plan: Plan, samples: &[Samples]) -> Self {
        let rows = samples.iter().map(|sample| Row {
            floor: sample.floor,
            threads: sample.threads,
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
            "ns per fault, medians (quartiles) of {} rounds of {} pages in random order\n",
            self.plan.rounds, self.plan.pages
        )?;
        let head = ["source", "threads", "bare handler", "", "pervma", "ratio"];
        line(f, head.map(str::to_owned))?;
        for row in &self.rows {
            let (source, handler) = match row.floor {
                Floor::IoctlOfOnePage => ("memory", "ioctl, one page"),
                Floor::IoctlOfSameBytes => ("memory", "ioctl, same bytes"),
                Floor::PreadAndIoctl => ("file", "pread + ioctl"),
            };
            line(
                f,
                [
                    source.to_owned(),
                    row.threads.to_string(),
                    handler.to_owned(),
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

fn line(f: &mut fmt::Formatter<'_>, cells: [String; 6]) -> fmt::Result {
    let [source, threads, handler, bare, pervma, ratio] = cells;
    let text = format!("{source:8}{threads:9}{handler:19}{bare:21}{pervma:21}{ratio}");
    writeln!(f, "{}", text.trim_end())
}
