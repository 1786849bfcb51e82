//! `pervma differ`: the model of Linux's mapping calls beside the running kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use pervma_differ::{Machine, Model, Options, Progress, Report, Tally, exceptions, run};
use serde::Serialize;

use crate::args::DifferOptions;
use crate::error::Error;
use crate::progress as line;
use crate::words::count;

/// What `--json` prints, in this order.
#[derive(Serialize)]
struct Json<'a> {
    ops: u64,
    seed: u64,
    divergences: u64,
    kernel: &'a str,
    by_call: BTreeMap<&'static str, Calls>,
    by_errno: &'a BTreeMap<&'static str, u64>,
    merges: u64,
    splits: u64,
    /// Numbers of steps that were excluded, by the name of the exception.
    excluded: &'a BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Calls {
    succeeded: u64,
    failed: u64,
}

/// Compares, and returns what to print and whether nothing differed.
pub(crate) fn compare(options: &DifferOptions) -> Result<(String, bool), Error> {
    let machine = Machine::here().map_err(Error::Differ)?;
    if let Some(reason) = machine.unfit().map_err(Error::Differ)? {
        return Err(Error::Unfit(reason));
    }
    let wanted = Options { ops: options.ops, seed: options.seed };
    let steps = usize::try_from(options.ops).unwrap_or(usize::MAX);
    let progress = line::Progress::of("comparing with the kernel", steps);
    let mut watch = |now| match now {
        Progress::Made(steps) => progress.done(steps),
        Progress::Shrinking(left) => {
            progress.says(|| format!("something differs; {} to it are left", count(left, "step")));
        }
    };
    let report = run(&machine, wanted, Model::new, &mut watch).map_err(Error::Differ)?;
    drop(progress);
    let text = if options.json { json(&report)? } else { table(&report) };
    Ok((text, report.divergence.is_none()))
}

fn json(report: &Report) -> Result<String, Error> {
    let calls = |tally: &Tally| Calls { succeeded: tally.succeeded, failed: tally.failed };
    let json = Json {
        ops: report.ops,
        seed: report.seed,
        divergences: u64::from(report.divergence.is_some()),
        kernel: &report.kernel,
        by_call: report.by_call.iter().map(|(name, tally)| (*name, calls(tally))).collect(),
        by_errno: &report.by_errno,
        merges: report.merges,
        splits: report.splits,
        excluded: &report.excluded,
    };
    Ok(serde_json::to_string(&json).map_err(io::Error::from)? + "\n")
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_table(&mut text, report);
    text
}

fn write_table(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { ops, seed, kernel, merges, splits, .. } = report;
    let seconds = report.elapsed.as_secs_f64();
    writeln!(text, "{ops} steps of seed {seed} beside Linux {kernel}, in {seconds:.1} s")?;
    let rate = 100.0 * report.success_rate();
    writeln!(text, "{rate:.1} % succeeded; {merges} mappings merged, {splits} were split")?;
    for (name, Tally { succeeded, failed }) in &report.by_call {
        writeln!(text, "{name:>14} {succeeded:>8} succeeded {failed:>8} failed")?;
    }
    for (name, count) in &report.by_errno {
        writeln!(text, "{name:>14} {count:>8}")?;
    }
    for (name, count) in &report.excluded {
        let why = exceptions::ALL.iter().find(|exception| exception.name == *name);
        writeln!(text, "{count} excluded: {}", why.map_or("", |exception| exception.why))?;
    }
    match &report.divergence {
        None => writeln!(text, "no divergence"),
        Some(divergence) => write!(text, "\n{divergence}"),
    }
}
