//! The model and the kernel do the same.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/capability.rs"]
mod capability;
mod common;

use pervma_differ::{Model, Op, Options, run};

#[test]
fn random_steps_do_the_same_here_and_on_the_kernel() {
    let Some(machine) = common::machine() else { return };
    for seed in [1, 2] {
        let report = run(&machine, Options { ops: 20_000, seed }, Model::new, &mut |_| ()).unwrap();
        if let Some(divergence) = report.divergence {
            panic!("seed {seed}: {divergence}");
        }
        assert!(report.success_rate() > 0.6, "{}", report.success_rate());
        assert!(report.merges > 1000 && report.splits > 1000);
        // What is mapped is opened by those who may.
        let kinds = Op::KINDS - usize::from(!capability::has(capability::CHECKPOINT_RESTORE));
        assert_eq!(report.by_call.len(), kinds, "every kind of step: {:?}", report.by_call);
    }
}

#[test]
fn the_same_seed_makes_the_same_steps() {
    let Some(machine) = common::machine() else { return };
    let counts = [(); 2].map(|()| {
        let report =
            run(&machine, Options { ops: 2000, seed: 7 }, Model::new, &mut |_| ()).unwrap();
        (report.by_call, report.by_errno, report.merges, report.splits)
    });
    assert_eq!(counts[0], counts[1]);
}
