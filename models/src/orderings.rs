//! The page of all orderings, made from the ledger and the models: docs/orderings.md.

use std::fmt::Write;
use std::fs;

use pervma_models::internals::STEPS;
use pervma_models::internals::ledger::{ARGUED, EDGES};

use crate::harness::{Change, Model};
use crate::models;

/// The crates that are shipped beside core.
const SHIPPED: [&str; 3] = ["cli", "linux", "pager"];

/// The page, if it can be true: an ordering outside of the ledger is an error.
pub(crate) fn page() -> Result<String, String> {
    let mut page = String::from(
        "# Memory orderings\n\n\
         Made by `cargo run -p pervma-models -- --orderings > docs/orderings.md` from\n\
         `core/src/ledger.rs` and `models/src/models/`; a test fails when it is stale. Everything else\n\
         that is atomic is relaxed: in `core` with its reason at the place, elsewhere as listed below.\n\n\
         ## Edges\n\n\
         An edge is one ordered operation, at one place in the source. Each model named beside it fails\n\
         when the edge is relaxed, and by what it is meant to show: the race or the assertion that the\n\
         model's mutant names. Behind each edge that it pairs with stand the models that fail when\n\
         either of the two is relaxed.\n\n\
         | edge | operation | pairs with | without it | models |\n|---|---|---|---|---|\n",
    );
    for edge in EDGES {
        let models =
            those_that(|change| matches!(change, Change::Weaken(name) if *name == edge.name));
        let (name, kind, ordering) = (edge.name, edge.kind, edge.ordering);
        let pair = |other: &&str| {
            let models = models::that_meet(name, other).map(|model| model.name);
            format!("{other} ({})", models.collect::<Vec<_>>().join(", "))
        };
        let pairs = edge.pairs.iter().map(pair).collect::<Vec<_>>().join("; ");
        let cells = [name, &format!("{kind:?}, {ordering:?}"), &pairs, edge.without, &models];
        row(&mut page, &cells);
    }
    page.push_str(
        "\n## Steps\n\nEach model named beside a step fails when the step is left out.\n\n\
         | step | what is done | models |\n|---|---|---|\n",
    );
    for &step in STEPS {
        let models = those_that(|change| matches!(change, Change::Drop(left) if *left == step));
        row(&mut page, &[&format!("{step:?}"), step.what(), &models]);
    }
    page.push_str(
        "\n## Argued, not modelled\n\nWhat the crate relies on and loom cannot show. Each is tried with real threads.\n\n\
         | name | what is relied on | why it holds | tried in |\n|---|---|---|---|\n",
    );
    for argued in ARGUED {
        let test = format!("`{}`", argued.test);
        row(&mut page, &[argued.name, argued.what, &argued.because.join(" "), &test]);
    }
    page.push_str(
        "\n## Bounds\n\nA model with two threads tries every interleaving of them, except these; with three threads,\n\
         up to so many preemptions of a thread.\n\n| model | threads | preemptions |\n|---|---|---|\n",
    );
    for Model { name, threads, preemptions, .. } in &models::ALL {
        if let Some(most) = preemptions {
            row(&mut page, &[name, &threads.to_string(), &format!("up to {most}")]);
        }
    }
    page.push_str(
        "\n## Outside of core\n\nNo other crate that is shipped has an ordering: what it has of atomics is relaxed. A page cannot\n\
         be made where one says more.\n\n| file | reason |\n|---|---|\n",
    );
    for (file, reason) in outside_of_core()? {
        row(&mut page, &[&format!("`{file}`"), &reason]);
    }
    page.push_str(
        "\n## What is shown by what\n\n\
         With a stable Rust toolchain and nothing else: the models and their mutants; that each edge is one\n\
         operation of the source (`core/tests/ledger.rs`); that the shipped facade gives each edge its\n\
         ordering, read in what the compiler makes of it for this machine (`core/tests/facade.rs`); that\n\
         nobody sleeps for ever (`schedules/`).\n\n\
         With the target `aarch64-unknown-linux-gnu`: that the machine code of a whole lookup has an\n\
         acquire for each that the ledger names, and that of a put none (`.ci/put`). With nightly and `miri`\n\
         or `rust-src`: that neither Miri nor ThreadSanitizer sees a race (`.ci/races`). Where these are\n\
         ABSENT, that is not shown.\n",
    );
    Ok(page)
}

/// The files outside of core that use atomics, each with the reason it gives.
fn outside_of_core() -> Result<Vec<(String, String)>, String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut found = Vec::new();
    let mut dirs: Vec<_> = SHIPPED.iter().map(|name| format!("{name}/src")).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(format!("{root}/{dir}")).map_err(|e| format!("{dir}: {e}"))? {
            let name = entry.map_err(|e| e.to_string())?.file_name();
            let path = format!("{dir}/{}", name.display());
            let Ok(text) = fs::read_to_string(format!("{root}/{path}")) else {
                dirs.push(path);
                continue;
            };
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let code = code.collect::<Vec<_>>().join(" ");
            let words = || code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            let ordered = ["Acquire", "Release", "AcqRel", "SeqCst", "fence", "compiler_fence"];
            if let Some(ordering) = words().find(|word| ordered.contains(word)) {
                return Err(format!("{path} has an ordering: {ordering}"));
            }
            if words().any(|word| word == "Relaxed") || code.contains("sync::atomic") {
                let reason = code.split("clippy::disallowed_types,").nth(1);
                let reason = reason.and_then(|rest| rest.split('"').nth(1));
                let reason =
                    reason.ok_or_else(|| format!("{path} uses atomics and says not why"))?;
                found.push((path, reason.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn row(page: &mut String, cells: &[&str]) {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    // Writing to a string does not fail.
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

/// The models with such a mutant.
fn those_that(made: impl Fn(&Change) -> bool) -> String {
    let has = |model: &&Model| model.mutants.iter().any(|mutant| made(&mutant.change));
    models::ALL.iter().filter(has).map(|model| model.name).collect::<Vec<_>>().join(", ")
}
