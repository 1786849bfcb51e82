//! No argument makes a call panic, and in strict mode none that fails changes anything.

#[path = "common/calls.rs"]
mod calls;

use std::iter;

/// Bytes that look random.
fn bytes(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    iter::repeat_with(move || {
        // Knuth's constants.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    })
}

#[test]
fn calls_with_random_arguments_keep_the_invariants() {
    for seed in 0..600 {
        let input: Vec<u8> = bytes(seed).take(2000).collect();
        calls::run(&input);
    }
}
