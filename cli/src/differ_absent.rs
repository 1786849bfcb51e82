//! `pervma differ` where there is nothing to compare with.

use crate::args::DifferOptions;
use crate::error::Error;

/// Returns the error that says so.
pub(crate) fn compare(_: &DifferOptions) -> Result<(String, bool), Error> {
    Err(Error::Unfit("it needs Linux on x86-64".to_owned()))
}
