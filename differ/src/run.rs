//! A run: episodes of steps, until there were enough or one differed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pervma_linux::{Config, File, Vma};

use crate::generate::{Generator, Scene};
use crate::machine::Machine;
use crate::model::Subject;
use crate::op::Op;
use crate::outcome::{self, Outcome};
use crate::session::{Difference, Session};
use crate::shrink::Shrinker;

/// Steps in an episode, which begins with a new process.
const EPISODE: u64 = 400;

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
    /// How often one was cut.
    pub splits: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What differed, if something did: the run ends there.
    pub divergence: Option<Divergence>,
}

/// What differs, and the steps to it.
pub type Found = (Difference, Vec<Op>);

/// A difference, and the shortest way to it that was found.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// What differs after the last step.
    pub difference: Difference,
    /// The steps, from a new process on.
    pub steps: Vec<Op>,
}

/// As a test to paste into `differ/tests/found.rs`.
impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.difference)?;
        writeln!(f, "#[test]\nfn found() {{\n    same(&[")?;
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

/// Makes steps and compares, with what `make` makes for each episode.
///
/// # Errors
///
/// When processes cannot be made or traced.
pub fn run<S: Subject>(
    machine: &Machine,
    options: Options,
    make: impl Fn(&Config, &[Arc<File>]) -> S,
) -> io::Result<Report> {
    let begin = Instant::now();
    let mut report =
        Report { seed: options.seed, kernel: machine.kernel.clone(), ..Report::default() };
    let mut episode = 0;
    while report.ops < options.ops && report.divergence.is_none() {
        let steps = EPISODE.min(options.ops - report.ops);
        let seed = options.seed.wrapping_mul(0x1_0000_0001).wrapping_add(episode);
        if let Some(found) = run_episode(machine, seed, steps, &make, &mut report)? {
            let (difference, steps) = Shrinker { machine, make: &make }.shrink(found)?;
            report.divergence = Some(Divergence { difference, steps });
        }
        episode += 1;
    }
    report.elapsed = begin.elapsed();
    Ok(report)
}

fn run_episode<S: Subject>(
    machine: &Machine,
    seed: u64,
    steps: u64,
    make: &impl Fn(&Config, &[Arc<File>]) -> S,
    report: &mut Report,
) -> io::Result<Option<Found>> {
    let mut session = Session::begin(machine, make)?;
    let mut generator = Generator::new(seed, *session.born(), machine.commit_limit);
    let mut made = Vec::new();
    let mut before = session.subject().vmas();
    for _ in 0..steps {
        let counts = session.subject().counts();
        let mut scene = Scene { vmas: before.clone(), counts };
        let op = generator.next(&mut scene);
        made.push(op.clone());
        let (outcome, difference) = session.step(&op)?;
        report.count(&op, outcome);
        if let Some(difference) = difference {
            return Ok(Some((difference, made)));
        }
        let after = session.subject().vmas();
        report.merges += ends_inside(&before, &after);
        report.splits += ends_inside(&after, &before);
        before = after;
    }
    let difference = session.compare_slow()?;
    Ok(difference.map(|difference| (difference, made)))
}

/// Random steps after others, which have left mappings in `apart` that are not to be touched. Of the
/// steps the results are compared, and the map at the end: it may be large. Not made any fewer.
///
/// # Errors
///
/// As for [`run`].
pub fn run_after<S: Subject>(
    machine: &Machine,
    make: &impl Fn(&Config, &[Arc<File>]) -> S,
    before: &[Op],
    apart: &Range<usize>,
    options: Options,
) -> io::Result<Option<Found>> {
    let mut session = Session::begin(machine, make)?;
    let mut made = Vec::new();
    for op in before {
        made.push(op.clone());
        if let (_, Some(difference)) = session.step_alone(op)? {
            return Ok(Some((difference, made)));
        }
    }
    let mut generator = Generator::new(options.seed, *session.born(), machine.commit_limit);
    let mut scene = Scene::default();
    for step in 0..options.ops {
        if step % NEWS == 0 {
            let subject = session.subject();
            scene = Scene { vmas: subject.vmas(), counts: subject.counts() };
            scene.vmas.retain(|(range, _)| !apart.contains(&range.start));
        }
        let op = generator.next(&mut scene);
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

/// Makes steps from a new process on; what differs, and after how many.
///
/// # Errors
///
/// When processes cannot be made or traced.
pub fn replay<S: Subject>(
    machine: &Machine,
    make: &impl Fn(&Config, &[Arc<File>]) -> S,
    steps: &[Op],
) -> io::Result<Option<(usize, Difference)>> {
    replay_after(machine, make, &[], steps)
}

/// As [`replay`], after other steps of which only the results are compared: with many mappings it
/// takes long to compare them all.
///
/// # Errors
///
/// As for [`replay`].
pub fn replay_after<S: Subject>(
    machine: &Machine,
    make: &impl Fn(&Config, &[Arc<File>]) -> S,
    before: &[Op],
    steps: &[Op],
) -> io::Result<Option<(usize, Difference)>> {
    let mut session = Session::begin(machine, make)?;
    for (made, op) in before.iter().enumerate() {
        if let (_, Some(difference)) = session.step_alone(op)? {
            return Ok(Some((made + 1, difference)));
        }
    }
    for (made, op) in steps.iter().enumerate() {
        if let (_, Some(difference)) = session.step(op)? {
            return Ok(Some((before.len() + made + 1, difference)));
        }
    }
    let difference = session.compare_slow()?;
    Ok(difference.map(|difference| (before.len() + steps.len(), difference)))
}
