//! Runs the models of pervma's protocol, and for each the mutants that it must reject.
//!
//! `pervma-models` runs everything and prints tables, with `--json` only their sums; it exits with
//! 1 if a model fails or a mutant survives. `pervma-models NAME` runs one model, `pervma-models
//! NAME MUTANT` one mutant in this very process, which a mutant may end. `pervma-models
//! --orderings` prints the page of all orderings, docs/orderings.md. Whatever would cut an
//! exploration short is refused.

mod harness;
mod models;
mod orderings;
mod report;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Interleavings of pervma's protocol, with the mutants each must reject.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Print docs/orderings.md, and run nothing.
    #[arg(long, conflicts_with_all = ["json", "model"])]
    orderings: bool,
    /// Print the sums only, as one JSON object.
    #[arg(long, conflicts_with = "model")]
    json: bool,
    /// Run only this model, in this process.
    model: Option<String>,
    /// With this of its mutants, counted from 0.
    mutant: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // loom takes its bounds from there, and says that all is well when one is reached.
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
    match models::ALL.iter().find(|model| model.name == name) {
        Some(model) => harness::run_here(model, args.mutant),
        None => {
            let names: Vec<_> = models::ALL.iter().map(|model| model.name).collect();
            eprintln!("there is no model {name:?}; the names: {names:?}");
            ExitCode::from(2)
        }
    }
}
