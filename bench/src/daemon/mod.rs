//! The pager daemon: faults of another process, beside handlers that do the same.
//!
//! The process whose pages fault is this program, run once more. What serves them runs here.

mod client;
mod clients;
mod content;
mod criu;
mod deaths;
mod events;
mod faults;
#[cfg(target_arch = "x86_64")]
mod guest;
#[cfg(not(target_arch = "x86_64"))]
#[path = "guest_absent.rs"]
mod guest;
mod guests;
mod handlers;
mod memory;
mod order;
mod page_server;
mod setup;
mod transfers;

pub(crate) use self::client::play;
pub(crate) use self::clients::measure as clients;
pub(crate) use self::criu::{heap, measure as criu, restores};
pub(crate) use self::deaths::{ServeHow, measure as deaths, serve};
pub(crate) use self::events::measure as events;
pub(crate) use self::faults::measure as faults;
pub(crate) use self::guests::measure as guests;
pub(crate) use self::transfers::measure as transfers;
