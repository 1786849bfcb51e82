//! Making given steps, from a new process on.

use std::io;

use pervma_linux::Config;

use crate::child::{Privileges, Special};
use crate::files::OpenFiles;
use crate::machine::Machine;
use crate::model::{Model, Subject};
use crate::op::Op;
use crate::session::{Difference, Session};

/// A difference, and the steps to it.
pub type Found = (Difference, Vec<Op>);

/// The kernel's own mappings in a new process.
///
/// # Errors
///
/// When processes cannot be made or traced.
pub fn special(machine: &Machine) -> io::Result<Vec<Special>> {
    let session = Session::begin(machine, Privileges::None, Model::new)?;
    Ok(session.initial().special.clone())
}

/// Makes steps from a new process on. Returns the first difference and the number of steps to it.
///
/// # Errors
///
/// When processes cannot be made or traced.
pub fn replay<S: Subject>(
    machine: &Machine,
    privileges: Privileges,
    make: &impl Fn(&Config, &OpenFiles) -> S,
    steps: &[Op],
) -> io::Result<Option<(usize, Difference)>> {
    replay_after(machine, privileges, make, &[], steps)
}

/// Makes steps as [`replay`] does, after others of which only the results are compared: with many
/// mappings it takes long to compare the maps.
///
/// # Errors
///
/// As for [`replay`].
pub fn replay_after<S: Subject>(
    machine: &Machine,
    privileges: Privileges,
    make: &impl Fn(&Config, &OpenFiles) -> S,
    before: &[Op],
    steps: &[Op],
) -> io::Result<Option<(usize, Difference)>> {
    let mut session = Session::begin(machine, privileges, make)?;
    for (made, op) in before.iter().enumerate() {
        if let (_, Some(difference)) = session.step_alone(op)? {
            return Ok(Some((made + 1, difference)));
        }
    }
    for (made, op) in steps.iter().enumerate() {
        if let (_, Some(difference)) = session.step(op)? {
            return Ok(Some((before.len() + made + 1, difference)));
        }
    }
    let difference = session.compare_slow()?;
    Ok(difference.map(|difference| (before.len() + steps.len(), difference)))
}
