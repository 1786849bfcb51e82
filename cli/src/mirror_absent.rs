//! The mirror, which needs Linux on x86-64.

use crate::args::MirrorOptions;
use crate::error::Error;

/// Says that there is none here.
pub(crate) fn run(_options: &MirrorOptions) -> Result<u8, Error> {
    Err(Error::Unfit("it needs Linux on x86-64".to_owned()))
}
