//! The cost of a page fault, beside the floors: a signal handler, and a thread, that do nothing but
//! fill.
//!
//! The ways to serve faults take turns, round by round, in one process and on the same bytes; each
//! round maps fresh memory and touches its pages once, in random order. What is measured is
//! the time of the touching reads. Run it with `--release`.
#![deny(unsafe_code)]

mod bare;
mod machine;
mod plan;
mod report;
mod round;
mod summary;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::machine::Machine;
use crate::plan::Plan;
use crate::report::Report;

/// Measure page faults: pervma's regions beside bare signal handlers and handler threads.
#[derive(Debug, Parser)]
#[command(name = "pervma-bench")]
struct Arguments {
    /// A few short rounds, to see that it works.
    #[arg(long)]
    quick: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
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
    if cfg!(debug_assertions) {
        eprintln!("pervma-bench: this is a debug build, run it with --release");
    }
    let arguments = Arguments::parse();
    let plan = if arguments.quick {
        Plan { rounds: 3, pages: 1024 }
    } else {
        Plan { rounds: 51, pages: 4096 }
    };
    let report = Report::new(Machine::detect(), plan, &plan.run()?);
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
