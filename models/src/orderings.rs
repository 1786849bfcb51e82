//! The page of all orderings, made from the ledger and the models: docs/orderings.md.

use std::fmt::Write;

use pervma_models::ledger::{ARGUED, EDGES, STEPS};

use crate::harness::{Change, Model};
use crate::models;

/// The page.
pub fn page() -> String {
    let mut page = String::from(
        "# Memory orderings\n\n\
         Made by `cargo run -p pervma-models -- --orderings > docs/orderings.md` from\n\
         `core/src/ledger.rs` and `models/src/models/`; a test fails when it is stale. Everything else\n\
         that is atomic is relaxed, with its reason at the place.\n\n\
         ## Edges\n\n\
         An edge is one ordered operation, at one place in the source. Each model named beside it fails\n\
         when the edge is relaxed, and by what it is meant to show: the race or the assertion that the\n\
         model's mutant names.\n\n\
         | edge | operation | pairs with | without it | models |\n|---|---|---|---|---|\n",
    );
    for edge in EDGES {
        let models =
            those_that(|change| matches!(change, Change::Weaken(name) if *name == edge.name));
        let (name, kind, ordering) = (edge.name, edge.kind, edge.ordering);
        let (pairs, without) = (edge.pairs.join(", "), edge.without);
        row(&mut page, &[name, &format!("{kind:?}, {ordering:?}"), &pairs, without, &models]);
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
        row(&mut page, &[argued.name, argued.what, argued.because, &test]);
    }
    page
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
