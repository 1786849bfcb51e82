//! Measures pervma beside what people use instead, and beside lower bounds.
//!
//! The implementations that a case compares take turns, round by round, in one process and on the
//! same input. Run it with `--release`.
#![deny(unsafe_code)]

mod allocator;
mod benchmarks;
mod comparison;
mod daemon;
mod faults;
mod foreign;
mod layout;
mod machine;
mod maps;
mod opening;
mod page;
mod plot;
mod report;
mod summary;

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::benchmarks::Benchmark;
use crate::benchmarks::instructions::{self, Case};
use crate::comparison::{Effort, timer_cost};
use crate::daemon::ServeHow;
use crate::machine::Machine;
use crate::report::Report;

/// Measure pervma beside what people use instead.
#[derive(Debug, Parser)]
#[command(name = "pervma-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Run a few short rounds, to see that it works.
    #[arg(long)]
    quick: bool,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Draw an SVG for each benchmark into this folder.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Run this benchmark only; may be given more than once.
    #[arg(long, value_enum, value_name = "BENCHMARK")]
    only: Vec<Benchmark>,
    /// Fail where a goal is missed.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    instead: Option<Instead>,
}

/// What is done instead of measuring.
#[derive(Debug, Subcommand)]
enum Instead {
    /// Print docs/benchmarks.md, made of runs that were saved with `--json`: of all benchmarks, or
    /// of some each.
    Page {
        #[arg(required = true)]
        runs: Vec<PathBuf>,
    },
    /// Print the counts that the benchmark `instructions` is to be held to.
    Record,
    /// Perform the operations of one case, as that benchmark has it done under callgrind.
    #[command(hide = true)]
    Perform(Case),
    /// Be the process whose pages fault, as the benchmarks of the daemon have it.
    #[command(hide = true)]
    Client,
    /// Be the daemon whose serving process is killed.
    #[command(hide = true)]
    Serve {
        folder: PathBuf,
        #[arg(value_enum)]
        how: ServeHow,
    },
    /// Be a process that CRIU dumps.
    #[command(hide = true)]
    Heap { len: usize, folder: PathBuf },
    /// Be the daemon that serves a restore.
    #[command(hide = true)]
    Restores { images: PathBuf, fillers: usize, server: Option<SocketAddr> },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pervma-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if cfg!(debug_assertions) {
        eprintln!("pervma-bench: this is a debug build, run it with --release");
    }
    match &arguments.instead {
        None => return measure(&arguments),
        Some(Instead::Page { runs }) => {
            let runs: Result<Vec<_>, _> = runs.iter().map(|path| saved(path)).collect();
            print!("{}", page::page(&runs?, page::EXPLANATIONS)?);
        }
        Some(Instead::Record) => print!("{}", instructions::record()?),
        Some(Instead::Perform(case)) => case.perform(),
        Some(Instead::Client) => daemon::play()?,
        Some(Instead::Serve { folder, how }) => daemon::serve(folder, *how)?,
        Some(Instead::Heap { len, folder }) => daemon::heap(*len, folder)?,
        Some(Instead::Restores { images, fillers, server }) => {
            daemon::restores(images, *fillers, *server)?;
        }
    }
    Ok(())
}

fn saved(path: &Path) -> Result<Report, Box<dyn Error>> {
    let named = |error: &dyn Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| named(&error))?;
    Ok(serde_json::from_str(&text).map_err(|error| named(&error))?)
}

fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let chosen = match arguments.only.as_slice() {
        [] => Benchmark::value_variants(),
        only => only,
    };
    let (machine, timer_cost) = (Machine::detect(), timer_cost());
    let benchmarks: Result<Vec<_>, _> =
        chosen.iter().map(|benchmark| benchmark.measure(&effort)).collect();
    let report = Report { machine, effort, timer_cost, benchmarks: benchmarks? };
    if let Some(folder) = &arguments.plot {
        plot::draw(&report, folder)?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    let missed = report.goals().filter(|(_, goal)| !goal.holds).count();
    if arguments.check && missed > 0 {
        return Err(format!("goals missed: {missed}").into());
    }
    Ok(())
}
