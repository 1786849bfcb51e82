//! Checks of the sources, the public interfaces and the dependencies of pervma, for CI.

mod api;
mod layers;
mod licences;
#[cfg(test)]
mod links;
mod missed;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// The folder of the workspace.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the imports against the layers in ARCHITECTURE.md.
    Layers {
        /// A package whose violations are printed but do not fail.
        #[arg(long)]
        open: Vec<String>,
    },
    /// Compare the public interfaces of the libraries with the lists in `api/`.
    Api {
        packages: Vec<String>,
        /// Write the lists anew.
        #[arg(long)]
        write: bool,
    },
    /// Check the licences of all dependencies.
    Licences,
    /// List what a run of the gate did not do, from the logs of its steps.
    Missed {
        logs: PathBuf,
        /// Fail if the list is not empty.
        #[arg(long)]
        strict: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { root, task }: Arguments) -> Result<()> {
    let root = root.canonicalize()?;
    match task {
        Task::Layers { open } => layers::run(&root, &open),
        Task::Api { packages, write } => api::run(&root, &packages, write),
        Task::Licences => licences::run(&root),
        Task::Missed { logs, strict } => missed::run(&logs, strict),
    }
}
