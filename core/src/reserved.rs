//! A range that is taken, with nothing mapped yet: the owner's handle.

use crate::held::{HandlerScope, SlabScope};
use crate::map::Map;
use crate::platform::Platform;
use crate::range::Span;
use crate::slots::Reserved;

/// A reservation, until it is committed. Dropping it gives the range back, and waits for no lock.
pub(crate) struct ReservedRange<'s, T, P: Platform> {
    map: &'s Map<T, P>,
    /// `None` when it was committed.
    slot: Option<Reserved<'s, T>>,
}

impl<'s, T, P: Platform> ReservedRange<'s, T, P> {
    pub(crate) fn new(map: &'s Map<T, P>, slot: Option<Reserved<'s, T>>) -> Self {
        Self { map, slot }
    }

    /// The space it is in.
    pub(crate) fn map(&self) -> &'s Map<T, P> {
        self.map
    }

    /// Maps the range: in the edit that the thread has open, if there is one, else in one of its
    /// own. Gives the payload back if that was done before.
    pub(crate) fn commit(&mut self, payload: T) -> Result<Span, T> {
        HandlerScope::<P>::assert_may_wait();
        let Some(slot) = self.slot.take() else { return Err(payload) };
        let span = slot.span();
        let slots = self.map.slab().slots();
        self.map.within_edit(|cursor| {
            slot.exclude(slots, cursor.section()).fill(cursor.section(), span, payload);
            cursor.section().count_vmas(0, 1);
        });
        Ok(span)
    }
}

impl<T, P: Platform> Drop for ReservedRange<'_, T, P> {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        if self.map.is_abandoned() {
            return; // it would wait for threads that are not there
        }
        // A handler may have interrupted an edit of its own thread anywhere, and a slab calls
        // others' code in the middle of one.
        let released = if HandlerScope::<P>::active() || SlabScope::<P>::active() {
            None
        } else {
            self.map.within_edit_at_once(|cursor| cursor.release(&slot))
        };
        if released.is_none() {
            slot.defer_release(self.map.state().deferred());
        }
    }
}
