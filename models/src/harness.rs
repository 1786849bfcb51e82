//! What a model and a mutant are, and how one runs in this process.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pervma_models::internals::ledger::{EDGES, Ordering};
use pervma_models::internals::{Mutation, Step, mutate};

/// A model: threads of the shipped source under every interleaving, up to a bound on the
/// preemptions of a thread, and every outcome of its loads that the memory model allows.
pub(crate) struct Model {
    /// The name.
    pub(crate) name: &'static str,
    /// What must hold, in one sentence.
    pub(crate) property: &'static str,
    /// How many threads it has; it cannot start more.
    pub(crate) threads: usize,
    /// The most preemptions of a thread that are tried; `None` is all.
    pub(crate) preemptions: Option<usize>,
    /// One execution.
    pub(crate) run: fn(),
    /// The changes that must make it fail.
    pub(crate) mutants: &'static [Mutant],
}

/// A change to the protocol, and the failure that shows it.
pub(crate) struct Mutant {
    /// What is weakened or left out.
    pub(crate) change: Change,
    /// How the model must fail: part of its first panic's message.
    pub(crate) killed_by: &'static str,
}

/// What a mutant changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The edge gets the next weaker ordering: an acquire or a release becomes relaxed (a fence
    /// disappears), a sequentially consistent fence acquires and releases. An edge is never both an
    /// acquire and a release (`models/tests/ledger.rs`).
    Weaken(&'static str),
    /// The step is left out.
    Drop(Step),
}

/// loom's report of two unordered accesses to a plain field.
pub(crate) const RACE: &str = "Causality violation";
/// loom's report of a state in which every thread sleeps.
pub(crate) const DEADLOCK: &str = "deadlock; threads";

/// Core's own check: a slot was freed while a reader held a reference to it.
pub(crate) const COUNTED: &str = "a slot is used again whose count is not 0";

/// A mutant that weakens an edge.
pub(crate) const fn weaken(edge: &'static str, killed_by: &'static str) -> Mutant {
    Mutant { change: Change::Weaken(edge), killed_by }
}

/// A mutant that leaves a step out.
pub(crate) const fn drop_step(step: Step, killed_by: &'static str) -> Mutant {
    Mutant { change: Change::Drop(step), killed_by }
}

impl Mutant {
    /// Its name in the table.
    pub(crate) fn name(&self) -> String {
        match self.change {
            Change::Weaken(edge) if weaker(edge) == Ordering::AcqRel => format!("{edge} acq_rel"),
            Change::Weaken(edge) => format!("{edge} relaxed"),
            Change::Drop(step) => format!("without {step:?}"),
        }
    }
}

/// The next weaker ordering than the edge's.
fn weaker(name: &str) -> Ordering {
    match EDGES.iter().find(|edge| edge.name == name).map(|edge| edge.ordering) {
        Some(Ordering::SeqCst) => Ordering::AcqRel,
        _ => Ordering::Relaxed,
    }
}

/// Runs one model in this process, mutated or not. The process fails if the model does.
pub(crate) fn run_here(model: &Model, mutant: Option<usize>) -> ExitCode {
    if let Some(mutant) = mutant {
        let Some(mutant) = model.mutants.get(mutant) else {
            eprintln!("{} has {} mutants", model.name, model.mutants.len());
            return ExitCode::from(2);
        };
        mutate(match mutant.change {
            Change::Weaken(edge) => Mutation::Weaken(edge, weaker(edge)),
            Change::Drop(step) => Mutation::Drop(step),
        });
    }
    let executions = Arc::new(Mutex::new(0_u64));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = model.preemptions;
    builder.max_threads = model.threads;
    builder.max_branches = 20_000;
    // Until every execution within the bound has been tried: nothing else ends it.
    builder.max_permutations = None;
    builder.max_duration = None;
    builder.checkpoint_file = None;
    let run = model.run;
    let counted = Arc::clone(&executions);
    builder.check(move || {
        *lock(&counted) += 1;
        run();
    });
    let executions = *lock(&executions);
    if executions < 2 {
        eprintln!("{} has one execution only: nothing in it is concurrent", model.name);
        return ExitCode::FAILURE;
    }
    println!("{executions}");
    ExitCode::SUCCESS
}

/// Locks `mutex`, poisoned or not: no panic leaves what it guards half done.
pub(crate) fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
