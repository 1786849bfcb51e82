//! The page of all orderings, made from the ledger and the models: docs/orderings.md.

use std::fmt::Write;
use std::fs;

use pervma_models::internals::STEPS;
use pervma_models::internals::ledger::{ARGUED, EDGES};

use crate::harness::{Change, Model};
use crate::models;

/// The crates beside core that programs use.
const OTHERS: [&str; 5] = ["capi", "cli", "linux", "pager", "serve"];

/// The text of the page. An ordering outside of the ledger is an error.
pub(crate) fn page() -> Result<String, String> {
    let mut page = String::from(
        "# Memory orderings\n\n\
         Made by `cargo run -p pervma-models -- --orderings > docs/orderings.md` from\n\
         `core/src/ledger.rs` and `models/src/models/`; a test fails when it is stale. Everything else\n\
         that is atomic is relaxed: in `core` with its reason at the place, elsewhere as listed below.\n\n\
         ## Edges\n\n\
         An edge is one ordered operation, at one place in the source. Each model named beside it fails\n\
         when the edge is relaxed, by the race or the assertion that the model's mutant names. The models\n\
         in parentheses fail when either edge of that pair is relaxed.\n\n\
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
        "\n## Argued, not modelled\n\nWhat the crate relies on and loom cannot show. Each is tested with real threads.\n\n\
         | name | what is relied on | why it holds | tested in |\n|---|---|---|---|\n",
    );
    for argued in ARGUED {
        let test = format!("`{}`", argued.test);
        row(&mut page, &[argued.name, argued.what, &argued.because.join(" "), &test]);
    }
    page.push_str(
        "\n## Bounds\n\nThese models are bounded in the preemptions of a thread. All others try every interleaving.\n\n\
         | model | threads | preemptions |\n|---|---|---|\n",
    );
    for Model { name, threads, preemptions, .. } in &models::ALL {
        if let Some(most) = preemptions {
            row(&mut page, &[name, &threads.to_string(), &format!("up to {most}")]);
        }
    }
    page.push_str(
        "\n## Outside of core\n\nAll atomics of the other crates that programs use are relaxed. This page is not made if one is not.\n\n\
         | file | reason |\n|---|---|\n",
    );
    for (file, reason) in outside_of_core()? {
        row(&mut page, &[&format!("`{file}`"), &reason]);
    }
    page.push_str(
        "\n## What each check needs\n\n\
         | needs | checks |\n|---|---|\n\
         | stable Rust | the models and their mutants (`models/`) |\n\
         | stable Rust | each edge is one operation of the source (`models/tests/ledger.rs`) |\n\
         | stable Rust | each edge has its ordering in LLVM's code for this machine (`models/tests/sync.rs`) |\n\
         | stable Rust | no thread sleeps forever under random schedules (`schedules/`) |\n\
         | the target `aarch64-unknown-linux-gnu` | the machine code of a lookup has an acquire for each that the ledger names; that of a release (a *put*) has none (`.ci/acquires`) |\n\
         | nightly with `miri`, or with `rust-src` | Miri, or ThreadSanitizer, reports no race (`.ci/races`) |\n\n\
         The gate says ABSENT where it could not make one of them.\n",
    );
    Ok(page)
}

/// The files of other crates that use atomics, each with its reason for that.
fn outside_of_core() -> Result<Vec<(String, String)>, String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut found = Vec::new();
    let mut dirs: Vec<_> = OTHERS.iter().map(|name| format!("{name}/src")).collect();
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
                    reason.ok_or_else(|| format!("{path} uses atomics without a reason"))?;
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

/// The names of the models with a mutant that `made` accepts.
fn those_that(made: impl Fn(&Change) -> bool) -> String {
    let has = |model: &&Model| model.mutants.iter().any(|mutant| made(&mutant.change));
    models::ALL.iter().filter(has).map(|model| model.name).collect::<Vec<_>>().join(", ")
}
