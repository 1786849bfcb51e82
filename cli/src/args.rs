//! The command line.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::error::{Error, one_line};

/// More threads than any machine needs to keep busy.
const MAX_THREADS: usize = 1024;

/// Real page faults, served on the faulting thread through a concurrent address space.
#[derive(Debug, Parser)]
#[command(name = "pervma", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Page a file in: read every page in random order, each first touch a real page fault, and
    /// check every byte.
    Page(PageOptions),
    /// Make random mapping calls on the running kernel and on pervma-linux, and compare results,
    /// errors and the whole map after each.
    Differ(DifferOptions),
}

#[derive(Args, Debug)]
pub(crate) struct DifferOptions {
    /// How many steps: calls, touches of memory, forks.
    #[arg(long, value_name = "N", default_value_t = 100_000, allow_negative_numbers = true)]
    pub(crate) ops: u64,
    /// Which steps: the same seed makes the same ones.
    #[arg(long, value_name = "S", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Print one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PageOptions {
    /// The file to page in [default: this program].
    pub(crate) file: Option<PathBuf>,
    /// How many threads touch pages, 1 to 1024 [default: one per core].
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Print one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The command asked for; `None` after help or version was printed.
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

/// Writes to standard output. A reader that has left is none of our business.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse().ok().and_then(NonZeroUsize::new) {
        Some(threads) if threads.get() <= MAX_THREADS => Ok(threads),
        _ => Err(format!("give a number from 1 to {MAX_THREADS}")),
    }
}

/// What clap says before it comes to usage, for which there is --help; with no colour, on one line.
fn first_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing".to_owned();
    }
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message).trim_end();
    one_line(Path::new(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn thread_counts_have_limits() {
        assert_eq!(threads("1").map(NonZeroUsize::get), Ok(1));
        assert_eq!(threads("1024").map(NonZeroUsize::get), Ok(1024));
        for bad in ["0", "1025", "-1", "two", "", "1e3", "99999999999999999999"] {
            assert!(threads(bad).is_err(), "{bad}");
        }
    }
}
