//! Runs every model and mutant, each in a process of its own, and reports the results.

use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;

use pervma_models::internals::STEPS;
use pervma_models::internals::ledger::{ARGUED, EDGES};

use crate::harness::{Change, Model, Mutant, lock};
use crate::models;

/// The page of published bugs; a test checks its rows.
const BUGS: &str = include_str!("../../docs/known-bugs.md");

/// The result of a model, or of one of its mutants.
struct Ran {
    model: &'static Model,
    mutant: Option<&'static Mutant>,
    end: End,
    seconds: f64,
}

/// How a run ended.
enum End {
    /// The model held, after this many executions.
    Held(u64),
    /// The mutant failed with the expected message.
    Killed,
    /// Anything else, with the output.
    Wrong(String),
}

impl Ran {
    fn is_mutant(&self, change: Change) -> bool {
        self.mutant.is_some_and(|mutant| mutant.change == change)
    }

    fn killed(&self) -> bool {
        matches!(self.end, End::Killed)
    }

    fn executions(&self) -> u64 {
        if let End::Held(executions) = self.end { executions } else { 0 }
    }
}

/// Runs everything and prints the tables, or one JSON object; fails unless all models held and all
/// mutants were killed.
pub(crate) fn run_all(json: bool) -> ExitCode {
    let ran = run_each();
    // A closed pipe is no reason to fail.
    let _ = if json { Ok(()) } else { tables(&ran, &mut io::stdout().lock()) };
    let totals = Totals::of(&ran);
    if json {
        println!("{}", totals.json());
    } else {
        println!("\n{} models: {}", models::ALL.len(), totals.json());
    }
    let complaints = complaints(&ran);
    for complaint in &complaints {
        eprintln!("WRONG: {complaint}");
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_each() -> Vec<Ran> {
    let jobs: Vec<(&Model, Option<usize>)> = models::ALL
        .iter()
        .flat_map(|model| {
            let mutants = (0..model.mutants.len()).map(Some);
            std::iter::once(None).chain(mutants).map(move |mutant| (model, mutant))
        })
        .collect();
    let (todo, done) = (Mutex::new(jobs.iter().enumerate()), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                // The queue's lock is released before the job begins.
                let next = || lock(&todo).next();
                while let Some((number, &(model, index))) = next() {
                    let mutant = index.and_then(|index| model.mutants.get(index));
                    let start = Instant::now();
                    let end = judge(model, index, mutant);
                    let seconds = start.elapsed().as_secs_f64();
                    lock(&done).push((number, Ran { model, mutant, end, seconds }));
                }
            });
        }
    });
    let mut ran = done.into_inner().unwrap_or_default();
    ran.sort_by_key(|&(number, _)| number);
    ran.into_iter().map(|(_, ran)| ran).collect()
}

fn judge(model: &Model, index: Option<usize>, mutant: Option<&Mutant>) -> End {
    let child = std::env::current_exe().and_then(|exe| {
        let mut child = Command::new(exe);
        child.arg(model.name).args(index.map(|index| index.to_string()));
        child.env_remove("RUST_BACKTRACE").output()
    });
    let output = match child {
        Ok(output) => output,
        Err(error) => return End::Wrong(format!("could not be run: {error}")),
    };
    let (said, printed) =
        (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    match (output.status.success(), mutant) {
        (true, None) => match printed.trim().parse() {
            Ok(executions) => End::Held(executions),
            Err(_) => End::Wrong(format!("printed {printed:?}")),
        },
        (true, Some(_)) => End::Wrong("SURVIVED".to_owned()),
        (false, Some(mutant)) if first_panic(&said).contains(mutant.killed_by) => End::Killed,
        (false, _) => End::Wrong(said.lines().take(12).collect::<Vec<_>>().join(" | ")),
    }
}

/// The message of the first panic: later ones may be consequences of the unwinding.
fn first_panic(said: &str) -> String {
    let lines = said.lines().skip_while(|line| !line.contains("panicked at")).skip(1);
    let message = lines.take_while(|line| !line.contains("panicked at"));
    message.collect::<Vec<_>>().join("\n")
}

/// Runs that ended in another way than expected, and what no model checks.
fn complaints(ran: &[Ran]) -> Vec<String> {
    let mut complaints: Vec<_> = ran
        .iter()
        .filter_map(|ran| match &ran.end {
            End::Wrong(said) => {
                let what = ran.mutant.map_or_else(|| "the model".to_owned(), Mutant::name);
                Some(format!("{}, {what}: {said}", ran.model.name))
            }
            End::Held(_) | End::Killed => None,
        })
        .collect();
    let changes = || EDGES.iter().map(|edge| Change::Weaken(edge.name));
    for change in changes().chain(STEPS.iter().map(|&step| Change::Drop(step))) {
        if !ran.iter().any(|ran| ran.is_mutant(change)) {
            complaints.push(match change {
                Change::Weaken(edge) => format!("no model weakens the edge {edge}"),
                Change::Drop(step) => format!("no model leaves out the step {step:?}"),
            });
        }
    }
    complaints.extend(gaps());
    complaints
}

/// Models without a mutant, and pairs of edges that no model checks together.
fn gaps() -> impl Iterator<Item = String> {
    let idle = models::ALL.iter().filter(|model| model.mutants.is_empty());
    let idle =
        idle.map(|model| format!("{} has no mutant: nothing shows that it can fail", model.name));
    let pairs = EDGES.iter().flat_map(|edge| edge.pairs.iter().map(|other| (edge.name, *other)));
    let apart = pairs.filter(|&(edge, other)| models::that_meet(edge, other).next().is_none());
    idle.chain(apart.map(|(edge, other)| format!("{edge} and {other} meet in no model")))
}

/// The sums of a run.
struct Totals {
    /// Orderings that the ledger names: edges, and argued ones.
    edges: usize,
    /// Edges with at least one mutant, all of them killed.
    modelled: usize,
    executions: u64,
    mutants: usize,
    killed: usize,
    /// Numbers in the page of published bugs.
    bugs: usize,
}

impl Totals {
    fn of(ran: &[Ran]) -> Self {
        let modelled = |name| {
            let mut mutants =
                ran.iter().filter(|ran| ran.is_mutant(Change::Weaken(name))).peekable();
            mutants.peek().is_some() && mutants.all(Ran::killed)
        };
        Self {
            edges: EDGES.len() + ARGUED.len(),
            modelled: EDGES.iter().filter(|edge| modelled(edge.name)).count(),
            executions: ran.iter().map(Ran::executions).sum(),
            mutants: ran.iter().filter(|ran| ran.mutant.is_some()).count(),
            killed: ran.iter().filter(|ran| ran.killed()).count(),
            bugs: bugs(),
        }
    }

    fn json(&self) -> String {
        let Self { edges, modelled, executions, mutants, killed, bugs } = self;
        let (survivors, argued) = (mutants - killed, ARGUED.len());
        format!(
            "{{\"edges\":{edges},\"modelled\":{modelled},\"executions\":{executions},\
             \"mutants\":{mutants},\"killed\":{killed},\"survivors\":{survivors},\
             \"argued\":{argued},\"bugs\":{bugs}}}"
        )
    }
}

/// How many bugs have a row, or several rows (B15a, B15b, …).
fn bugs() -> usize {
    let rows = BUGS.lines().filter_map(|line| line.strip_prefix("| B"));
    let mut numbers: Vec<_> =
        rows.filter_map(|row| row.split(|c: char| !c.is_numeric()).next()).collect();
    numbers.dedup();
    numbers.len()
}

fn tables(ran: &[Ran], out: &mut impl Write) -> io::Result<()> {
    for Ran { model, mutant, end, seconds } in ran {
        match mutant {
            None => {
                let Model { name, property, threads, preemptions, .. } = model;
                let bound = match preemptions {
                    None => "all preemptions".to_owned(),
                    Some(most) => format!("up to {most} preemptions"),
                };
                writeln!(out, "\n{name}: {property}")?;
                write!(out, "  {threads} threads, {bound}: ")?;
            }
            Some(mutant) => write!(out, "  {:<26}", mutant.name())?,
        }
        let killed_by = mutant.map_or("", |mutant| mutant.killed_by);
        match end {
            End::Held(executions) => {
                writeln!(out, "held in {executions} executions, {seconds:.1} s")?
            }
            End::Killed => writeln!(out, "killed, {seconds:.1} s: {killed_by}")?,
            End::Wrong(_) => writeln!(out, "WRONG, {seconds:.1} s")?,
        }
    }

    writeln!(
        out,
        "\n{:<15} {:<8} {:>10} {:>7} {:>6}  other ends; models",
        "edge", "ordering", "executions", "mutants", "killed"
    )?;
    for edge in EDGES {
        let ordering = format!("{:?}", edge.ordering);
        write!(out, "{:<15} {ordering:<8} ", edge.name)?;
        row(out, ran, Change::Weaken(edge.name), &format!("{}; ", edge.pairs.join(", ")))?;
    }
    writeln!(
        out,
        "\n{:<24} {:>10} {:>7} {:>6}  models",
        "step", "executions", "mutants", "killed"
    )?;
    for &step in STEPS {
        write!(out, "{:<24} ", format!("{step:?}"))?;
        row(out, ran, Change::Drop(step), "")?;
    }
    writeln!(out, "\nargued, not modelled")?;
    for argued in ARGUED {
        writeln!(out, "{:<15} {}; tested in {}", argued.name, argued.what, argued.test)?;
    }
    Ok(())
}

/// The rest of a row: executions, mutants and models that `change` is a mutant of.
fn row(out: &mut impl Write, ran: &[Ran], change: Change, ends: &str) -> io::Result<()> {
    let mutants: Vec<_> = ran.iter().filter(|ran| ran.is_mutant(change)).collect();
    let names: Vec<_> = mutants.iter().map(|ran| ran.model.name).collect();
    let held = ran.iter().filter(|ran| names.contains(&ran.model.name));
    let executions: u64 = held.map(Ran::executions).sum();
    let killed = mutants.iter().filter(|ran| ran.killed()).count();
    writeln!(out, "{executions:>10} {:>7} {killed:>6}  {ends}{}", mutants.len(), names.join(", "))
}
