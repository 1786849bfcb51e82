//! `mirror`: a program that runs, beside the model.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;

use pervma_differ::mirror::{Command, Ended, Report, mirror};
use pervma_differ::{Machine, Tally};
use serde::Serialize;

use crate::args::{self, MirrorOptions};
use crate::error::{Error, MISMATCHED, one_line};
use crate::mirror_picture;
use crate::words::{count, tenths};

#[derive(Serialize)]
struct Json<'a> {
    program: &'a str,
    calls: u64,
    divergences: u64,
    resyncs: u64,
    threads: u64,
    forks: u64,
    by_call: BTreeMap<&'a str, Calls>,
    asked: BTreeMap<&'a str, u64>,
    waited: u64,
    seconds: f64,
    slowdown: f64,
    limited: bool,
    exit: Option<i32>,
    signal: Option<i32>,
    kernel: &'a str,
}

#[derive(Serialize)]
struct Calls {
    succeeded: u64,
    failed: u64,
}

/// Runs the program, and returns the exit status: the program's own if nothing differed.
pub(crate) fn run(options: &MirrorOptions) -> Result<u8, Error> {
    let machine = Machine::here().map_err(Error::Differ)?;
    if let Some(reason) = machine.unfit().map_err(Error::Differ)? {
        return Err(Error::Unfit(reason));
    }
    let Some((program, arguments)) = options.program.split_first() else {
        return Err(Error::Usage("a program is missing".to_owned()));
    };
    let command = Command {
        limit: options.limit,
        output_to_errors: options.json,
        record: options.svg.is_some(),
        ..Command::new(program, arguments)
    };
    let report = mirror(&machine, &command)?;
    if let Some(file) = &options.svg {
        mirror_picture::draw(&report.record, file)?;
    }
    let name = one_line(Path::new(program));
    let text = if options.json { json(&report, &name, &machine)? } else { table(&report, &name) };
    args::print(&text)?;
    Ok(status(&report))
}

/// As a shell says it for a program that a signal has ended.
const BY_SIGNAL: u8 = 128;
/// As `timeout` says it.
const LIMITED: u8 = 124;

fn status(report: &Report) -> u8 {
    match report.ended {
        _ if report.divergences > 0 || report.resyncs > 0 => MISMATCHED,
        _ if report.limited => LIMITED,
        Ended::Exited(status) => u8::try_from(status).unwrap_or(u8::MAX),
        Ended::Killed(signal) => BY_SIGNAL.saturating_add(u8::try_from(signal).unwrap_or(0)),
    }
}

fn json(report: &Report, program: &str, machine: &Machine) -> Result<String, Error> {
    let calls = |tally: &Tally| Calls { succeeded: tally.succeeded, failed: tally.failed };
    let (exit, signal) = match report.ended {
        Ended::Exited(status) => (Some(status), None),
        Ended::Killed(signal) => (None, Some(signal)),
    };
    let json = Json {
        program,
        calls: report.calls,
        divergences: report.divergences,
        resyncs: report.resyncs,
        threads: report.threads,
        forks: report.forks,
        by_call: report.by_call.iter().map(|(name, tally)| (*name, calls(tally))).collect(),
        asked: report.facts.iter().map(|(fact, count)| (fact.name(), *count)).collect(),
        waited: report.waited,
        seconds: (report.elapsed.as_secs_f64() * 1e3).round() / 1e3,
        slowdown: tenths(report.slowdown()),
        limited: report.limited,
        exit,
        signal,
        kernel: &machine.kernel,
    };
    if report.divergences > 0 {
        tell(report);
    }
    Ok(serde_json::to_string(&json).map_err(io::Error::from)? + "\n")
}

/// Says on standard error what differed, which the JSON does not.
fn tell(report: &Report) {
    for divergence in &report.shown {
        // If standard error is closed, there is no place left for it.
        let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{divergence}\n"));
    }
}

fn table(report: &Report, program: &str) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_table(&mut text, report, program);
    text
}

fn write_table(text: &mut String, report: &Report, program: &str) -> std::fmt::Result {
    let Report { calls, threads, forks, waited, .. } = report;
    let number = |number: u64, thing: &str| count(usize::try_from(number).unwrap_or(0), thing);
    let seconds = report.elapsed.as_secs_f64();
    writeln!(text, "{program}: {} in {seconds:.1} s", number(*calls, "call"))?;
    let threads = number(*threads, "thread");
    let processes = if *forks == 1 { "process" } else { "processes" };
    writeln!(text, "{threads} and {forks} {processes} started; {waited} waited for another call")?;
    writeln!(text, "about {:.1} times as slow as without", report.slowdown())?;
    for (name, Tally { succeeded, failed }) in &report.by_call {
        writeln!(text, "{name:>23} {succeeded:>8} succeeded {failed:>8} failed")?;
    }
    for (fact, count) in &report.facts {
        writeln!(text, "{count:>8} asked of the kernel: {}", fact.name())?;
    }
    match report.ended {
        _ if report.limited => writeln!(text, "killed when the time was over")?,
        Ended::Exited(0) => {}
        Ended::Exited(status) => writeln!(text, "it ended with {status}")?,
        Ended::Killed(signal) => writeln!(text, "it was ended by signal {signal}")?,
    }
    if report.divergences == 0 {
        return writeln!(text, "no divergence");
    }
    for divergence in &report.shown {
        writeln!(text, "\n{divergence}")?;
    }
    let divergences = number(report.divergences, "divergence");
    writeln!(text, "{divergences}, after each of which the model was made anew")
}
