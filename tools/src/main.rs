//! What CI checks of the sources, the public interfaces and the dependencies of pervma.

mod api;
mod layers;
mod licences;
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
    /// Holds the layers in ARCHITECTURE.md against the imports.
    Layers {
        /// A package that is not in order yet: what is wrong in it is told, and does not count.
        #[arg(long)]
        open: Vec<String>,
    },
    /// Compares the public interfaces of libraries with the lists in `api/`.
    Api {
        packages: Vec<String>,
        /// Makes the lists anew.
        #[arg(long)]
        write: bool,
    },
    /// Checks the licences of all dependencies.
    Licences,
    /// Says what a run of the gate did not do, from the logs of its steps.
    Missed {
        logs: PathBuf,
        /// Fail if that is something.
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
