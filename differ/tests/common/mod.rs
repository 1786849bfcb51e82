//! What the tests have in common.

use pervma_differ::Machine;

/// Returns the machine. If no comparison can be made on it, says why; the test has not run then.
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
