//! `pervma`: serves real page faults, and checks every byte.
#![deny(unsafe_code)]

mod args;
mod churn;
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), path = "differ_absent.rs")]
mod differ;
mod error;
mod input;
mod latency;
mod mapped;
mod memory;
mod order;
mod page;
mod picture;
mod progress;
mod report;
mod serve;
mod touch;
mod words;

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

use crate::args::Command;
use crate::error::{BAD_INPUT, Error};

/// Everything matched.
const MATCHED: u8 = 0;
/// Bytes differed, or pages were not faulted in; or the kernel and the model differ.
const MISMATCHED: u8 = 1;

/// The size of the stack that the work is done on, in bytes; `ulimit -s` may be anything.
const STACK: usize = 2 << 20;

fn main() -> ExitCode {
    let result = match args::parse() {
        Ok(None) => Ok(MATCHED),
        // The sandbox has to be entered by the only thread.
        Ok(Some(Command::Serve(options))) => {
            serve::run(&options).map(|all| if all { MATCHED } else { MISMATCHED })
        }
        Ok(Some(command)) => {
            let work = thread::Builder::new().stack_size(STACK).spawn(|| run(command));
            work.map_err(Error::NoThread).and_then(|work| touch::join(work.join()))
        }
        Err(error) => Err(error),
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        // If standard error is closed, there is no place left to report that.
        let _ = writeln!(io::stderr(), "pervma: {error}");
        BAD_INPUT
    }))
}

fn run(command: Command) -> Result<u8, Error> {
    match command {
        Command::Page(options) => page(&options),
        Command::Differ(options) => {
            let (text, same) = differ::compare(&options)?;
            args::print(&text)?;
            Ok(if same { MATCHED } else { MISMATCHED })
        }
        Command::Serve(_) => unreachable!("it is run by the first thread"),
    }
}

fn page(options: &args::PageOptions) -> Result<u8, Error> {
    let report = page::run(options)?;
    if let Some(file) = &options.svg {
        picture::draw(&report, file)?;
    }
    let text =
        if options.json { report.to_json().map_err(io::Error::from)? } else { report.to_string() };
    args::print(&text)?;
    Ok(if report.passed() { MATCHED } else { MISMATCHED })
}
