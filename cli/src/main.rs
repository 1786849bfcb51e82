//! `pervma`: sees real page faults served, and checks every byte.
#![deny(unreachable_pub)]
#![forbid(unsafe_code)]

mod args;
mod churn;
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), path = "differ_absent.rs")]
mod differ;
mod error;
mod input;
mod memory;
mod page;
mod progress;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::args::Command;
use crate::error::Error;

/// Everything matched.
const MATCHED: u8 = 0;
/// Bytes differed, or pages were not faulted in; or the kernel and the model differ.
const MISMATCHED: u8 = 1;
/// Nothing could be measured: one line on standard error says why.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let code = match run() {
        Ok(code) => code,
        Err(error) => {
            // Nowhere is left to report that standard error is closed.
            let _ = writeln!(io::stderr(), "pervma: {error}");
            BAD_INPUT
        }
    };
    ExitCode::from(code)
}

fn run() -> Result<u8, Error> {
    let options = match args::parse()? {
        None => return Ok(MATCHED),
        Some(Command::Differ(options)) => {
            let (text, same) = differ::compare(&options)?;
            args::print(&text)?;
            return Ok(if same { MATCHED } else { MISMATCHED });
        }
        Some(Command::Page(options)) => options,
    };
    let report = page::run(&options)?;
    let text =
        if options.json { report.to_json().map_err(io::Error::from)? } else { report.to_string() };
    args::print(&text)?;
    Ok(if report.passed() { MATCHED } else { MISMATCHED })
}
