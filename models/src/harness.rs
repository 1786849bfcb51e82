//! Runs models and mutants, each in a process of its own, and judges how they ended.

use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pervma_models::internals::{Mutation, mutate};
use pervma_models::ledger::{EDGES, Ordering, STEPS, Step};

use crate::models;

/// A model: threads of the shipped source under every interleaving, up to so many preemptions of a
/// thread, and every outcome of its loads that the memory model allows.
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// What must hold, in one sentence.
    pub property: &'static str,
    /// The most preemptions of a thread that are tried; `None` is all.
    pub preemptions: Option<usize>,
    /// One execution.
    pub run: fn(),
    /// What must make it fail.
    pub mutants: &'static [Mutant],
}

/// A change to the protocol, and the failure that shows it.
pub struct Mutant {
    /// What is weakened or left out.
    pub change: Change,
    /// How the model must fail: part of the message.
    pub killed_by: &'static str,
}

/// What a mutant changes.
#[derive(Clone, Copy)]
pub enum Change {
    /// The edge of this name becomes relaxed; a fence disappears.
    Weaken(&'static str),
    /// The step is left out.
    Drop(Step),
}

/// loom saw two accesses to a plain field that nothing orders.
pub const RACE: &str = "Causality violation";
/// loom saw every thread asleep.
pub const DEADLOCK: &str = "deadlock";

/// A mutant that weakens an edge.
pub const fn weaken(edge: &'static str, killed_by: &'static str) -> Mutant {
    Mutant { change: Change::Weaken(edge), killed_by }
}

/// A mutant that leaves a step out.
pub const fn drop_step(step: Step, killed_by: &'static str) -> Mutant {
    Mutant { change: Change::Drop(step), killed_by }
}

impl Mutant {
    fn name(&self) -> String {
        match self.change {
            Change::Weaken(edge) => format!("{edge} relaxed"),
            Change::Drop(step) => format!("without {step:?}"),
        }
    }
}

/// Runs one model in this process, mutated or not. The process fails if the model does.
pub fn run_here(model: &Model, mutant: Option<usize>) -> ExitCode {
    if let Some(mutant) = mutant {
        let Some(mutant) = model.mutants.get(mutant) else {
            eprintln!("{} has {} mutants", model.name, model.mutants.len());
            return ExitCode::from(2);
        };
        mutate(match mutant.change {
            Change::Weaken(edge) => Mutation::Weaken(edge, Ordering::Relaxed),
            Change::Drop(step) => Mutation::Drop(step),
        });
    }
    let executions = Arc::new(Mutex::new(0_u64));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = model.preemptions;
    builder.max_branches = 20_000;
    let run = model.run;
    let counted = Arc::clone(&executions);
    builder.check(move || {
        *lock(&counted) += 1;
        run();
    });
    println!("{}", lock(&executions));
    ExitCode::SUCCESS
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of a run.
enum Outcome {
    /// The model held, after this many executions.
    Held(String),
    /// A mutant failed as it must.
    Killed,
    /// Anything else, with what it said.
    Wrong(String),
}

fn judge(model: &Model, mutant: Option<usize>) -> Outcome {
    let child = std::env::current_exe().and_then(|exe| {
        Command::new(exe).arg(model.name).args(mutant.map(|mutant| mutant.to_string())).output()
    });
    let output = match child {
        Ok(output) => output,
        Err(error) => return Outcome::Wrong(format!("could not be run: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match (output.status.success(), mutant.and_then(|mutant| model.mutants.get(mutant))) {
        (true, None) => Outcome::Held(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        (true, Some(_)) => Outcome::Wrong("SURVIVED".to_owned()),
        (false, Some(mutant)) if said.contains(mutant.killed_by) => Outcome::Killed,
        (false, _) => Outcome::Wrong(said.lines().take(12).collect::<Vec<_>>().join(" | ")),
    }
}

/// Runs everything and prints the table.
pub fn run_all() -> ExitCode {
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
                // The queue's lock is let go before the job begins.
                let next = || lock(&todo).next();
                while let Some((number, &(model, mutant))) = next() {
                    let start = Instant::now();
                    let outcome = judge(model, mutant);
                    lock(&done).push((number, outcome, start.elapsed().as_secs_f64()));
                }
            });
        }
    });
    let mut results = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|&(number, ..)| number);

    let mut wrong = 0;
    let (mut mutants, mut killed) = (0, 0);
    for (number, outcome, seconds) in results {
        let (model, mutant) = jobs[number];
        match mutant.and_then(|mutant| model.mutants.get(mutant)) {
            None => {
                let bound = model.preemptions.map_or("all".to_owned(), |most| most.to_string());
                println!("\n{}: {}\n  preemptions: {bound}", model.name, model.property);
            }
            Some(mutant) => {
                mutants += 1;
                print!("  {:<28}", mutant.name());
            }
        }
        match outcome {
            Outcome::Held(executions) => {
                println!("  held in {executions} executions, {seconds:.1} s")
            }
            Outcome::Killed => {
                killed += 1;
                println!("killed, {seconds:.1} s");
            }
            Outcome::Wrong(said) => {
                wrong += 1;
                println!("WRONG, {seconds:.1} s: {said}");
            }
        }
    }

    let changes: Vec<Change> =
        models::ALL.iter().flat_map(|model| model.mutants).map(|mutant| mutant.change).collect();
    let weakened =
        |name| changes.iter().any(|change| matches!(change, Change::Weaken(edge) if *edge == name));
    for edge in EDGES.iter().filter(|edge| !weakened(edge.name)) {
        println!("\nno model weakens the edge {}", edge.name);
        wrong += 1;
    }
    let dropped =
        |step| changes.iter().any(|change| matches!(change, Change::Drop(left) if *left == step));
    for step in STEPS.iter().filter(|step| !dropped(**step)) {
        println!("\nno model leaves out the step {step:?}");
        wrong += 1;
    }
    println!(
        "\n{} models, {} edges, {mutants} mutants, {killed} killed, {wrong} wrong",
        models::ALL.len(),
        EDGES.len()
    );
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
