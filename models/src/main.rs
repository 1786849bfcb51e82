//! Runs the models of pervma's protocol, and for each the mutants that it must reject.
//!
//! `pervma-models` runs everything and prints a table; it exits with 1 if a model fails or a
//! mutant survives. `pervma-models NAME` runs one model, `pervma-models NAME MUTANT` one mutant in
//! this very process, since a mutation holds for a whole process and may end it.
//! `pervma-models --orderings` prints the page of all orderings, docs/orderings.md.

mod harness;
mod models;
mod orderings;

use std::process::ExitCode;

use clap::Parser;

/// Interleavings of pervma's protocol, with the mutants each must reject.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Print docs/orderings.md, and run nothing.
    #[arg(long)]
    orderings: bool,
    /// Run only this model, in this process.
    model: Option<String>,
    /// With this of its mutants, counted from 0.
    mutant: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.orderings {
        print!("{}", orderings::page());
        return ExitCode::SUCCESS;
    }
    let Some(name) = args.model else { return harness::run_all() };
    match models::ALL.iter().find(|model| model.name == name) {
        Some(model) => harness::run_here(model, args.mutant),
        None => {
            eprintln!("there is no model {name:?}; the names: {:?}", models::ALL.map(|m| m.name));
            ExitCode::from(2)
        }
    }
}
