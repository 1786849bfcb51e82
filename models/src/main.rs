//! Runs the models of pervma's protocol, and for each the mutants that it must reject.
//!
//! `pervma-models` runs everything and prints tables, with `--json` only their totals; it exits
//! with 1 if a model fails or a mutant survives. `pervma-models NAME` runs one model,
//! `pervma-models NAME MUTANT` one mutant, both in this process, which a mutant may abort.
//! `pervma-models --orderings` prints docs/orderings.md. loom's environment variables are refused,
//! since they could end an exploration early.

mod harness;
mod models;
mod orderings;
mod report;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Check models of pervma's protocol, and that each rejects its mutants.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Print docs/orderings.md, and run nothing.
    #[arg(long, conflicts_with_all = ["json", "model"])]
    orderings: bool,
    /// Print only the totals, as one JSON object.
    #[arg(long, conflicts_with = "model")]
    json: bool,
    /// The one model to run, in this process.
    model: Option<String>,
    /// The mutant of it to run, counted from 0.
    mutant: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // loom takes bounds from the environment, and reports success when one is reached.
    let set =
        |(name, _): (OsString, _)| name.to_string_lossy().starts_with("LOOM_").then_some(name);
    if let Some(name) = std::env::vars_os().find_map(set) {
        eprintln!("{} is set: a model states its own bounds", name.display());
        return ExitCode::from(2);
    }
    if args.orderings {
        return match orderings::page() {
            Ok(page) => {
                print!("{page}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let Some(name) = args.model else { return report::run_all(args.json) };
    let named: Vec<_> = models::ALL.iter().filter(|model| model.name == name).collect();
    match named[..] {
        [model] => harness::run_here(model, args.mutant),
        [] => {
            let names: Vec<_> = models::ALL.iter().map(|model| model.name).collect();
            eprintln!("there is no model {name:?}; the names: {names:?}");
            ExitCode::from(2)
        }
        [..] => {
            eprintln!("more than one model has the name {name:?}");
            ExitCode::from(2)
        }
    }
}
