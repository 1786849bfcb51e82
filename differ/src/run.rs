//! Runs: episodes of steps, until there were enough or one differed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use pervma_linux::{Config, Vma};

use crate::child::Privileges;
use crate::exceptions::Place;
use crate::files::OpenFiles;
use crate::generate::Generator;
use crate::machine::Machine;
use crate::model::Subject;
use crate::op::Op;
use crate::outcome::{self, Outcome};
use crate::replay::Found;
use crate::scene::Scene;
use crate::session::{Difference, Session};
use crate::shrink::Shrinker;

/// Steps in an episode, which begins with a new process.
const EPISODE: u64 = 400;

/// The process keeps its privileges, if it has any, in one of so many episodes.
const PRIVILEGED: u64 = 4;

/// Steps after which the mappings are read again, where that takes long.
const NEWS: u64 = 8;

/// The steps to be made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of steps.
    pub ops: u64,
    /// The same seed makes the same steps.
    pub seed: u64,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many steps were made and compared.
    Made(u64),
    /// Something differs, and so many of the steps to it are left.
    Shrinking(usize),
}

/// How often a call succeeded and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often it did what it should.
    pub succeeded: u64,
    /// How often it returned an error, or memory could not be touched.
    pub failed: u64,
}

/// The results of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of steps that were made and compared.
    pub ops: u64,
    /// The seed of the steps.
    pub seed: u64,
    /// The release of the kernel.
    pub kernel: String,
    /// Successes and failures, by the name of the call.
    pub by_call: BTreeMap<&'static str, Tally>,
    /// Numbers of errors, by their names.
    pub by_errno: BTreeMap<&'static str, u64>,
    /// How often mappings merged, on the kernel and in the model alike.
    pub merges: u64,
    /// How often one was split.
    pub splits: u64,
    /// Numbers of steps that were excluded, by the name of the exception.
    pub excluded: BTreeMap<&'static str, u64>,
    /// The time that the run took.
    pub elapsed: Duration,
    /// The difference that ended the run, if there was one.
    pub divergence: Option<Divergence>,
}

/// A difference, and the fewest steps to it that were found.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// The difference after the last step.
    pub difference: Difference,
    /// The steps, from a new process on.
    pub steps: Vec<Op>,
    /// The privileges of the process.
    pub privileges: Privileges,
}

/// Shows it as a test to paste into `differ/tests/found.rs`.
impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let same = match self.privileges {
            Privileges::None => "same",
            Privileges::Kept => "same_with_privileges",
        };
        writeln!(f, "{}", self.difference)?;
        writeln!(f, "#[test]\nfn found() {{\n    {same}(&[")?;
        for op in &self.steps {
            writeln!(f, "        {op},")?;
        }
        writeln!(f, "    ]);\n}}")
    }
}

impl Report {
    /// Returns the share of steps that succeeded.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more")]
    pub fn success_rate(&self) -> f64 {
        let succeeded: u64 = self.by_call.values().map(|tally| tally.succeeded).sum();
        succeeded as f64 / self.ops.max(1) as f64
    }

    fn count(&mut self, op: &Op, outcome: Outcome) {
        self.ops += 1;
        let tally = self.by_call.entry(op.name()).or_default();
        let done = match *op {
            // It returns the old end when it fails.
            Op::Brk { addr } => outcome == Outcome::of(Ok(addr)),
            _ => outcome.is_success(),
        };
        if done {
            tally.succeeded += 1;
        } else {
            tally.failed += 1;
        }
        if let Some(error) = outcome.errno() {
            *self.by_errno.entry(outcome::errno_name(error)).or_default() += 1;
        }
    }
}

/// Makes random steps and compares. `make` makes a model for each episode, and `watch` is called
/// with the run's progress.
///
/// # Errors
///
/// When processes cannot be made or traced.
pub fn run<S: Subject>(
    machine: &Machine,
    options: Options,
    make: impl Fn(&Config, &OpenFiles) -> S,
    watch: &mut dyn FnMut(Progress),
) -> io::Result<Report> {
    let begin = Instant::now();
    let mut report =
        Report { seed: options.seed, kernel: machine.kernel.clone(), ..Report::default() };
    let mut number = 0;
    while report.ops < options.ops && report.divergence.is_none() {
        let privileged = number % PRIVILEGED == PRIVILEGED - 1;
        let episode = Episode {
            seed: options.seed.wrapping_mul(0x1_0000_0001).wrapping_add(number),
            steps: EPISODE.min(options.ops - report.ops),
            privileges: if privileged { Privileges::Kept } else { Privileges::None },
        };
        if let Some(found) = episode.run(machine, &make, &mut report, watch)? {
            let privileges = episode.privileges;
            let watch = &mut |left| watch(Progress::Shrinking(left));
            let (difference, steps) =
                Shrinker { machine, privileges, make: &make, watch }.shrink(found)?;
            report.divergence = Some(Divergence { difference, steps, privileges });
        }
        number += 1;
    }
    report.elapsed = begin.elapsed();
    Ok(report)
}

/// Steps of one process.
struct Episode {
    seed: u64,
    steps: u64,
    privileges: Privileges,
}

impl Episode {
    fn run<S: Subject>(
        &self,
        machine: &Machine,
        make: &impl Fn(&Config, &OpenFiles) -> S,
        report: &mut Report,
        watch: &mut dyn FnMut(Progress),
    ) -> io::Result<Option<Found>> {
        let mut session = Session::begin(machine, self.privileges, make)?;
        let initial = session.initial().clone();
        let mut generator = Generator::new(self.seed, Place { machine, initial: &initial });
        let mut made = Vec::new();
        let mut scene = Scene::of(session.subject());
        for _ in 0..self.steps {
            let op = generator.next(&mut scene, &mut report.excluded);
            made.push(op.clone());
            let (outcome, difference) = session.step(&op)?;
            report.count(&op, outcome);
            if let Some(difference) = difference {
                return Ok(Some((difference, made)));
            }
            watch(Progress::Made(report.ops));
            let after = Scene::of(session.subject());
            report.merges += ends_inside(&scene.vmas, &after.vmas);
            report.splits += ends_inside(&after.vmas, &scene.vmas);
            scene = after;
        }
        let difference = session.compare_slow()?;
        Ok(difference.map(|difference| (difference, made)))
    }
}

/// Makes random steps after others, which have left mappings in `apart` that are not to be touched.
/// The results are compared after each step, and the map, which may be large, at the end. The steps
/// to a difference are not made fewer.
///
/// # Errors
///
/// As for [`run`].
pub fn run_after<S: Subject>(
    machine: &Machine,
    make: &impl Fn(&Config, &OpenFiles) -> S,
    before: &[Op],
    apart: &Range<usize>,
    options: Options,
) -> io::Result<Option<Found>> {
    let mut session = Session::begin(machine, Privileges::None, make)?;
    let mut made = Vec::new();
    for op in before {
        made.push(op.clone());
        if let (_, Some(difference)) = session.step_alone(op)? {
            return Ok(Some((difference, made)));
        }
    }
    let initial = session.initial().clone();
    let mut generator = Generator::new(options.seed, Place { machine, initial: &initial });
    let mut scene = Scene::default();
    for step in 0..options.ops {
        if step % NEWS == 0 {
            scene = Scene::of(session.subject());
            scene.vmas.retain(|(range, _)| !apart.contains(&range.start));
        }
        let op = generator.next(&mut scene, &mut BTreeMap::new());
        made.push(op.clone());
        if let (_, Some(difference)) = session.step_alone(&op)? {
            return Ok(Some((difference, made)));
        }
    }
    let difference = match session.compare()? {
        None => session.compare_slow()?,
        found => found,
    };
    Ok(difference.map(|difference| (difference, made)))
}

/// How many mappings of one list end inside a mapping of another.
fn ends_inside(ending: &[(Range<usize>, Vma)], whole: &[(Range<usize>, Vma)]) -> u64 {
    let mut whole = whole.iter().peekable();
    let mut count = 0;
    for (range, _) in ending {
        while whole.next_if(|(other, _)| other.end <= range.end).is_some() {}
        let inside = whole.peek().is_some_and(|(other, _)| other.start < range.end);
        count += u64::from(inside);
    }
    count
}
