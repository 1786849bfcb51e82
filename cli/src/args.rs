//! The command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::error::{Error, one_line};
use crate::lazy_pages::LazyPagesOptions;
use crate::serve::ServeOptions;
use crate::values::{Granule, size, threads};

/// Real page faults, served on the faulting thread through a concurrent address space.
#[derive(Debug, Parser)]
#[command(name = "pervma", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Page a file in: touch every page in random order, each first touch a real page fault, and
    /// check every byte.
    Page(PageOptions),
    /// Make random mapping calls on the running kernel and on pervma-linux, and compare results,
    /// errors and the whole map after each.
    Differ(DifferOptions),
    /// Run a program under ptrace, make each of its mapping calls on pervma-linux, too, and compare
    /// results, the whole map, flags and counts (docs/mirror.md).
    Mirror(MirrorOptions),
    /// Serve the page faults of microVMs that are restored from snapshots: Firecracker's, and all
    /// that arrive as it does.
    Serve(ServeOptions),
    /// Serve the page faults of processes that CRIU restores (`criu restore --lazy-pages`), and
    /// fill the rest of their memory meanwhile: in place of `criu lazy-pages`.
    LazyPages(LazyPagesOptions),
    /// Say what is in records of what VMs asked for first (`pervma serve --record`), and how far
    /// they overlap. Those of e2b (JSON) and REAP (CSV) are read as well.
    WorkingSet(WorkingSetOptions),
}

#[derive(Args, Debug)]
pub(crate) struct WorkingSetOptions {
    /// The records.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Draw what was asked for, offset by time, as SVG into this file.
    #[arg(long, value_name = "OUT")]
    pub(crate) svg: Option<PathBuf>,
    /// Print one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DifferOptions {
    /// The number of steps, at least 1: calls, touches of memory, forks, changes of files.
    #[arg(long, value_name = "N", default_value_t = 100_000, allow_negative_numbers = true,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ops: u64,
    /// The seed of the random steps: the same seed makes the same steps.
    #[arg(long, value_name = "S", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Print one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct MirrorOptions {
    /// Print one JSON object on one line to standard output; that of the program goes to standard
    /// error.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the address spaces over time as SVG into this file: mappings, calls, merges.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Kill everything that still runs after so many seconds, and report what was compared.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// The program, and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    pub(crate) program: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct PageOptions {
    /// The file to page in [default: this program].
    pub(crate) file: Option<PathBuf>,
    /// The number of threads that touch pages, 1 to 1024 [default: one per core].
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// How much one fault fills: 4K, 64K or 2M.
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub(crate) granule: Granule,
    /// What serves faults: the thread that faults, in a signal handler, or a thread of the region.
    #[arg(long, value_name = "MODE", default_value = "signal")]
    pub(crate) mode: Mode,
    /// The most bytes of the file that are in memory at a time, with K, M or G [default: all of
    /// the file, or half of the available memory if the file is larger than that].
    #[arg(long, value_name = "BYTES", value_parser = size, allow_negative_numbers = true)]
    pub(crate) resident: Option<usize>,
    /// Meanwhile, map, protect, discard and unmap ranges inside and beside the region in another
    /// thread, until at least a tenth of the pages was faulted again.
    #[arg(long)]
    pub(crate) churn: bool,
    /// Afterwards, touch the same pages in the same order in the kernel's own mapping of the file
    /// (mmap), and by ordinary reads.
    #[arg(long)]
    pub(crate) compare: bool,
    /// Draw how long touches took, and where in the file, as SVG into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Print one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What serves faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// The thread that faults, in a signal handler.
    Signal,
    /// A thread of the region.
    Thread,
}

/// Returns the command that was asked for; `None` after help or version was printed.
pub(crate) fn parse() -> Result<Option<Command>, Error> {
    match Cli::try_parse() {
        Ok(cli) => Ok(Some(cli.command)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                print(&error.to_string()).map(|()| None)
            }
            _ => Err(Error::Usage(first_line(&error))),
        },
    }
}

/// Writes to standard output. A closed pipe is no error.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// Returns what clap says before the usage, which --help prints; without colour, on one line.
fn first_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing".to_owned();
    }
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    // Lines of clap are joined; a line break of an argument is shown as it is.
    let message = message.split("\n  ").collect::<Vec<_>>().join(" ");
    one_line(Path::new(message.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
