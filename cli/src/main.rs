//! `pervma`: serves real page faults, and checks every byte.
#![deny(unsafe_code)]

mod args;
mod churn;
mod daemon;
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), path = "differ_absent.rs")]
mod differ;
mod error;
mod inherited;
mod input;
mod latency;
mod lazy_pages;
mod mapped;
mod memory;
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), path = "mirror_absent.rs")]
mod mirror;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod mirror_picture;
mod order;
mod page;
mod picture;
mod progress;
mod report;
mod serve;
mod touch;
mod values;
mod words;
mod working_set;

use std::io;
use std::process::ExitCode;
use std::thread;

use crate::args::Command;
use crate::error::{Error, MATCHED, MISMATCHED};

/// The size of the stack that the work is done on, in bytes; `ulimit -s` may be anything.
const STACK: usize = 2 << 20;

fn main() -> ExitCode {
    // The sandbox has to be entered by the only thread.
    let is_daemon = |command| command == "serve" || command == "lazy-pages";
    let result = if std::env::args_os().nth(1).is_some_and(is_daemon) {
        run()
    } else {
        let work = thread::Builder::new().stack_size(STACK).spawn(run);
        work.map_err(Error::NoThread).and_then(|work| touch::join(work.join()))
    };
    ExitCode::from(result.unwrap_or_else(|error| error.tell()))
}

fn run() -> Result<u8, Error> {
    match args::parse()? {
        None => Ok(MATCHED),
        Some(Command::Page(options)) => page(&options),
        Some(Command::Differ(options)) => {
            let (text, same) = differ::compare(&options)?;
            args::print(&text)?;
            Ok(if same { MATCHED } else { MISMATCHED })
        }
        Some(Command::Mirror(options)) => mirror::run(&options),
        Some(Command::Serve(options)) => serve::run(&options),
        Some(Command::WorkingSet(options)) => {
            let report = working_set::Report::read(&options.files)?;
            if let Some(file) = &options.svg {
                report.draw(file)?;
            }
            let text = if options.json {
                report.to_json().map_err(io::Error::from)?
            } else {
                report.to_string()
            };
            args::print(&text)?;
            Ok(MATCHED)
        }
        Some(Command::LazyPages(options)) => lazy_pages::run(&options),
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
