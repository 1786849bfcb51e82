//! A run: episodes of steps, until there were enough or one differed.

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

/// Of so many episodes, the process of the last one keeps its privileges, if it has any.
const PRIVILEGED: u64 = 4;

/// Steps between two looks at what there is, where it takes long to look.
const NEWS: u64 = 8;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many steps.
    pub ops: u64,
    /// Which steps.
    pub seed: u64,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many steps were made and compared.
    Made(u64),
    /// Something has differed; so many of the steps to it are left.
    Shrinking(usize),
}

/// How often a call succeeded and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// It did what it was asked for.
    pub succeeded: u64,
    /// It returned an error, or memory could not be touched.
    pub failed: u64,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Steps made and compared.
    pub ops: u64,
    /// Which steps.
    pub seed: u64,
    /// The kernel's release.
    pub kernel: String,
    /// By the name of the call.
    pub by_call: BTreeMap<&'static str, Tally>,
    /// By the name of the error.
    pub by_errno: BTreeMap<&'static str, u64>,
    /// How often mappings became one, on the kernel and in the model alike.
    pub merges: u64,
    /// How often one was split.
    pub splits: u64,
    /// Steps that were made up and not made, by the name of the exception.
    pub left_out: BTreeMap<&'static str, u64>,
    /// How long it took.
    pub elapsed: Duration,
    /// What differed, if something did: the run ends there.
    pub divergence: Option<Divergence>,
}

/// A difference, and the shortest way to it that was found.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// What differs after the last step.
    pub difference: Difference,
    /// The steps, from a new process on.
    pub steps: Vec<Op>,
    /// What the process may do.
    pub privileges: Privileges,
}

/// As a test to paste into `differ/tests/found.rs`.
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
    /// The share of steps that succeeded.
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

/// Makes steps and compares, with what `make` makes for each episode; tells `watch` how far it has
/// come.
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
        let born = *session.born();
        let mut generator = Generator::new(self.seed, Place { machine, born: &born });
        let mut made = Vec::new();
        let mut scene = Scene::of(session.subject());
        for _ in 0..self.steps {
            let op = generator.next(&mut scene, &mut report.left_out);
            made.push(op.clone());
            let (outcome, difference) = session.step(&op)?;
            report.count(&op, outcome);
            if let Some(difference) = difference {
                return Ok(Some((difference, made)));
            }
            watch(Progress::Made(report.ops));
            let after = Scene { locks_new: scene.locks_new, ..Scene::of(session.subject()) };
            report.merges += ends_inside(&scene.vmas, &after.vmas);
            report.splits += ends_inside(&after.vmas, &scene.vmas);
            scene = after;
        }
        let difference = session.compare_slow()?;
        Ok(difference.map(|difference| (difference, made)))
    }
}

/// Random steps after others, which have left mappings in `apart` that are not to be touched. Of the
/// steps the results are compared, and the map at the end: it may be large. Not made any fewer.
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
    let born = *session.born();
    let mut generator = Generator::new(options.seed, Place { machine, born: &born });
    let mut scene = Scene::default();
    for step in 0..options.ops {
        if step % NEWS == 0 {
            scene = Scene { locks_new: scene.locks_new, ..Scene::of(session.subject()) };
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
