//! What a run of the gate did not do: the lines "ABSENT: .." and "NOT RUN: .." in the logs of its
//! steps.
//!
//! A step says ABSENT where something that it needs is not there. A test says NOT RUN (or
//! "skipped") where it returns without having tried what its name says. Such a line counts unless
//! the same test has run in another step, as another user.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

/// Prints what the logs in `folder` say was not done; with `strict` fails if that is something.
pub(crate) fn run(folder: &Path, strict: bool) -> Result<()> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "log") {
            let step = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            logs.push(Log::read(step, &String::from_utf8_lossy(&fs::read(&path)?)));
        }
    }
    let missed = missed(&logs);
    missed.iter().for_each(|line| println!("{line}"));
    match missed.len() {
        0 => println!("nothing was left out"),
        number if strict => bail!("{number} things were not done, and CI_STRICT is set"),
        number => println!("{number} things were not done"),
    }
    Ok(())
}

/// A test: its program, and its name there.
type Test = (String, String);

#[derive(Default)]
struct Log {
    step: String,
    passed: BTreeSet<Test>,
    /// What was not done, and by which test, if by one.
    not_done: Vec<(Option<Test>, String)>,
}

impl Log {
    fn read(step: String, text: &str) -> Self {
        let mut log = Self { step, ..Self::default() };
        let (mut program, mut test) = (String::new(), None);
        for line in text.lines() {
            if let Some(name) = program_of(line) {
                (program, test) = (name, None);
            } else if let Some(name) = between(line, "test ", " ... ok") {
                log.passed.insert((program.clone(), name.to_owned()));
            } else if let Some(name) = between(line, "---- ", " stdout ----") {
                test = Some((program.clone(), name.to_owned()));
            } else if line == "successes:" {
                // A list of names, or of what each of them printed.
                test = None;
            } else if ["ABSENT: ", "NOT RUN: ", "skipped: "].iter().any(|m| line.starts_with(m)) {
                log.not_done.push((test.clone(), line.to_owned()));
            }
        }
        log
    }

    fn left_out(&self, test: &Test) -> bool {
        self.not_done.iter().any(|(of, _)| of.as_ref() == Some(test))
    }
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.strip_suffix(after)
}

/// The program whose tests follow, without the number that cargo gives it: cargo says
/// `Running tests/live.rs (target/debug/deps/live-0123)`, `.ci/as-nobody` says `--- live-0123`.
fn program_of(line: &str) -> Option<String> {
    let path = match line.trim_start().strip_prefix("Running ") {
        Some(rest) => rest.rsplit_once('(')?.1.strip_suffix(')')?,
        None => line.strip_prefix("--- ")?,
    };
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

fn missed(logs: &[Log]) -> Vec<String> {
    let mut missed = BTreeSet::new();
    for log in logs {
        for (test, line) in &log.not_done {
            let elsewhere = |test: &Test| {
                logs.iter().any(|log| log.passed.contains(test) && !log.left_out(test))
            };
            match test {
                Some(test) if elsewhere(test) => {}
                Some((program, name)) => {
                    missed.insert(format!("{line} ({program}: {name})"));
                }
                None => {
                    missed.insert(format!("{line} (step {})", log.step));
                }
            }
        }
    }
    missed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{Log, missed};

    const ROOT: &str = "
     Running tests/live.rs (target/debug/deps/live-1a)
test huge ... ok
test only_users ... ok
test both ... ok

successes:

---- huge stdout ----
NOT RUN: no huge pages

---- only_users stdout ----
skipped: root may do it

successes:
    both
    huge
test result: ok. 3 passed
     Running tests/other.rs (target/debug/deps/other-2b)
test only_users ... ok
";

    const NOBODY: &str = "
--- live-3c
test huge ... ok
test only_users ... ok
successes:

---- huge stdout ----
NOT RUN: no huge pages
";

    fn log(step: &str, text: &str) -> Log {
        Log::read(step.to_owned(), text)
    }

    #[test]
    fn a_test_that_ran_in_no_step_is_listed() {
        let huge = "NOT RUN: no huge pages (live: huge)";
        let users = "skipped: root may do it (live: only_users)";
        assert_eq!(missed(&[log("tests", ROOT)]), [huge, users]);
        assert_eq!(missed(&[log("tests", ROOT), log("nobody", NOBODY)]), [huge]);
    }

    #[test]
    fn what_a_step_lacks_is_listed() {
        let step = log("races", "ABSENT: nightly with miri\nit says ABSENT: in the middle\n");
        assert_eq!(missed(&[step]), ["ABSENT: nightly with miri (step races)"]);
        assert_eq!(missed(&[log("races", "fine\n")]), [""; 0]);
    }
}
