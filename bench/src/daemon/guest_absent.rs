//! No guests: their code is of x86-64.

use std::error::Error;
use std::time::Duration;

use super::memory::Missing;
use super::order::Order;

pub(super) fn touch(_: Missing, _: usize, _: Order) -> Result<Duration, Box<dyn Error>> {
    Err("the guest's code is of x86-64".into())
}
