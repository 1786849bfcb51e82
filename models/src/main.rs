//! Runs the models of pervma's protocol, and for each the mutants that it must reject.
//!
//! `pervma-models` runs everything and prints tables, with `--json` only their sums; it exits with 1
//! if a model fails or a mutant survives. `pervma-models NAME` runs one model, `pervma-models NAME
//! MUTANT` one mutant in this very process, which a mutant may end. `pervma-models --orderings`
//! prints the page of all orderings, docs/orderings.md.

mod harness;
mod models;
mod orderings;
mod report;

use std::process::ExitCode;

use clap::Parser;

/// Interleavings of pervma's protocol, with the mutants each must reject.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Print docs/orderings.md, and run nothing.
    #[arg(long)]
    orderings: bool,
    /// Print the sums only, as one JSON object.
    #[arg(long)]
    json: bool,
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
    let Some(name) = args.model else { return report::run_all(args.json) };
    match models::ALL.iter().find(|model| model.name == name) {
        Some(model) => harness::run_here(model, args.mutant),
        None => {
            eprintln!("there is no model {name:?}; the names: {:?}", models::ALL.map(|m| m.name));
            ExitCode::from(2)
        }
    }
}
