//! For calls of several threads there is an order in which they give the same one by one, on the
//! model and on the kernel.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use pervma_differ::{Model, Privileges, Rounds, replay};

/// How many rounds, of some eight calls each.
fn rounds() -> usize {
    std::env::var("PERVMA_ROUNDS").map_or(2_000, |rounds| rounds.parse().unwrap())
}

#[test]
fn calls_of_several_threads_have_an_order() {
    let orders = Rounds { seed: 1, rounds: rounds() }.run().unwrap_or_else(|why| panic!("{why}"));
    println!(
        "{} calls, {} refused, {} rounds in another order than that of their ends",
        orders.calls, orders.refused, orders.searched
    );
    assert!(orders.refused > 0);
    let Some(machine) = common::machine() else { return };
    for steps in orders.steps.chunks(20_000).take(1) {
        let difference = replay(&machine, Privileges::None, &Model::new, steps).unwrap();
        assert!(difference.is_none(), "{difference:?}");
    }
}
