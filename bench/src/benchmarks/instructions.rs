//! Instructions of an operation, counted by callgrind.
//!
//! The program runs itself under valgrind, once for each case. Callgrind counts inside of
//! [`callgrind_counts_this`] only: neither what builds the map, nor what makes a change undone. One
//! build counts the same each time.

use std::error::Error;
use std::fmt::{self, Write};
use std::hint::black_box;
use std::io::ErrorKind;
use std::process::Command;
use std::{env, fs};

use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::NamedTempFile;

use super::edits::Pair;
use crate::comparison::{Bound, Goal};
use crate::layout::{self, Build, Layout};
use crate::maps::{Find, Map, Pervma, Reader};
use crate::report::{Figures, Table};
use crate::summary::Summary;

const SIZES: [usize; 3] = [16, 1_000, 65_000];

/// Operations of a run.
const TIMES: usize = 10_000;

/// What may be counted, over what was recorded: compilers differ.
const ALLOWED: f64 = 1.1;

/// What [`record`] has returned, on the architecture that has a record.
const RECORDED: &str =
    if cfg!(target_arch = "x86_64") { include_str!("../../instructions.txt") } else { "" };

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Operation {
    Lookup,
    Cursor,
    Registered,
    RegisteredCursor,
    Insert,
    Remove,
    SplitMerge,
}

impl Operation {
    fn registers(self) -> bool {
        matches!(self, Self::Registered | Self::RegisteredCursor)
    }
}

/// What one run under callgrind counts.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Case {
    operation: Operation,
    vmas: usize,
}

/// An operation by its name, and the VMAs among which it is done.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} VMAs", self.name(), self.vmas)
    }
}

pub(crate) fn measure() -> Result<Figures, Box<dyn Error>> {
    let Some(counts) = counts()? else {
        return Ok((
            "ABSENT: valgrind, which counts instructions, is not installed.",
            vec![],
            vec![],
        ));
    };
    let mut table = Table::new("VMAs", "instructions");
    for vmas in SIZES {
        let of_this = counts.iter().filter(|(case, _)| case.vmas == vmas);
        table.point(
            vmas,
            of_this.map(|(case, count)| (case.name(), Some(Summary::exactly(*count)))),
        );
    }
    let goals = counts.iter().filter_map(|(case, count)| {
        let bound = Bound::AtMost((case.recorded()? * ALLOWED).ceil());
        Some(Goal::new(format!("{case}: instructions"), bound, Summary::exactly(*count)))
    });
    let about = "Instructions of an operation of pervma's: the mean of 10,000 at random places, counted by \
                 callgrind. A cursor's lookups are of one address. Insert, remove, and both changes of \
                 split-merge are edits of their own. The bounds are a tenth above the counts in \
                 bench/instructions.txt, which are of x86-64; there are none elsewhere.";
    Ok((about, vec![table], goals.collect()))
}

/// The counts of now, as bench/instructions.txt has them.
///
/// # Errors
///
/// Without valgrind, and where it fails.
pub(crate) fn record() -> Result<String, Box<dyn Error>> {
    let mut text =
        "Instructions of an operation. Made by `.ci/instructions --record`.\n".to_owned();
    for (case, count) in counts()?.ok_or("valgrind is not installed")? {
        writeln!(text, "{case}: {count}")?;
    }
    Ok(text)
}

/// Each case and its instructions.
type Counts = Vec<(Case, f64)>;

/// `None` without valgrind.
fn counts() -> Result<Option<Counts>, Box<dyn Error>> {
    Case::all().map(|case| Ok(case.count()?.map(|count| (case, count)))).collect()
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let operations = Operation::value_variants().iter();
        operations.flat_map(|&operation| SIZES.map(|vmas| Self { operation, vmas }))
    }

    fn name(self) -> String {
        let name = self.operation.to_possible_value();
        name.map_or_else(String::new, |name| name.get_name().to_owned())
    }

    fn recorded(self) -> Option<f64> {
        let prefix = format!("{self}: ");
        RECORDED.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok())
    }

    /// The mean; `None` without valgrind.
    fn count(self) -> Result<Option<f64>, Box<dyn Error>> {
        let counts = NamedTempFile::new()?;
        let valgrind = Command::new("valgrind")
            .args(["--tool=callgrind", "--toggle-collect=*callgrind_counts_this*"])
            .arg(format!("--callgrind-out-file={}", counts.path().display()))
            .arg(env::current_exe()?)
            .args(["perform", &self.name(), &self.vmas.to_string()])
            .output();
        let output = match valgrind {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            valgrind => valgrind?,
        };
        let total = fs::read_to_string(counts.path())?
            .lines()
            .find_map(|line| line.strip_prefix("totals: ")?.parse::<f64>().ok())
            .filter(|&total| output.status.success() && total > 0.0);
        match total {
            Some(total) => Ok(Some(total / TIMES as f64)),
            None => Err(format!(
                "callgrind has not counted {self}: {}",
                String::from_utf8_lossy(&output.stderr)
            )
            .into()),
        }
    }

    /// What runs under callgrind.
    pub(crate) fn perform(self) {
        let map = <Pervma>::of(&Layout { vmas: self.vmas }.build(Build::Random));
        let (mut reader, mut cursor) = (&map.0, map.0.cursor());
        // Only for the lookups that need it: edits pay for it.
        let registered = self.operation.registers().then(|| map.0.register().ok()).flatten();
        let mut registered_cursor = registered.as_ref().map(pervma::Reader::cursor);
        for number in layout::numbers(&mut StdRng::seed_from_u64(3), TIMES, 0..self.vmas) {
            let guest = layout::guest(number);
            let range = guest.range.clone();
            match self.operation {
                Operation::Lookup => look_up(&mut reader, layout::middle(number).start),
                Operation::Cursor => look_up(&mut cursor, layout::middle(0).start),
                Operation::Registered => {
                    if let Some(reader) = &registered {
                        look_up(&mut &*reader, layout::middle(number).start);
                    }
                }
                Operation::RegisteredCursor => {
                    if let Some(cursor) = &mut registered_cursor {
                        look_up(cursor, layout::middle(0).start);
                    }
                }
                Operation::Insert => {
                    callgrind_counts_this(|| map.insert(guest));
                    map.remove(range);
                }
                Operation::Remove => {
                    map.insert(guest);
                    callgrind_counts_this(|| map.remove(range));
                }
                Operation::SplitMerge => {
                    callgrind_counts_this(|| Pair::SplitMerge.run(&map, number))
                }
            }
        }
    }
}

fn look_up(reader: &mut impl Reader, addr: usize) {
    black_box(callgrind_counts_this(|| reader.read(addr)));
}

/// Callgrind knows it by its name.
#[inline(never)]
fn callgrind_counts_this<R>(operation: impl FnOnce() -> R) -> R {
    operation()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn each_case_is_recorded() {
        assert_eq!(RECORDED.lines().count(), 1 + Case::all().count());
        assert!(Case::all().all(|case| case.recorded() > Some(0.0)));
    }
}
