//! What the tests have in common.

use pervma_differ::Machine;

/// The machine, if the comparison can be made on it; else it says why not, and the test has not run.
pub(crate) fn machine() -> Option<Machine> {
    let machine = Machine::here().unwrap();
    match machine.unfit().unwrap() {
        None => Some(machine),
        Some(reason) => {
            println!("NOT RUN: {reason}");
            None
        }
    }
}
