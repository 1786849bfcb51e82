//! Slots: type-stable memory for VMAs (see [`arena`](crate::arena)).

mod holding;
mod reading;
mod slot;

pub(crate) use holding::{
    Attached, Emptied, Entry, Excluded, FreeSlot, Reserved, Waiter, WriteLocked,
};
pub(crate) use reading::{ReadLocked, Reference, Rejected};
pub(crate) use slot::{Slot, Slots};
