//! Identities of spaces and threads, unique in a process.
//!
//! An address is not unique: the next space, or the next thread, can lie where a dead one was.

use crate::step::Step;
use crate::sync::{AtomicU64, MUTANT, Relaxed, const_unless_model, keep, new_identity};

/// An identity that is assigned when it is first needed, so that what has one can be a `static`.
pub(crate) struct Identity(AtomicU64);

impl Identity {
    const_unless_model! {
        pub(crate) fn unassigned() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// The identity; 0 if none was needed yet.
    #[inline(always)]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed("compared only; what has the identity is published otherwise"))
    }

    /// The identity, never 0.
    #[inline]
    pub(crate) fn get_or_assign(&self) -> u64 {
        match self.get() {
            0 => self.assign(),
            id => id,
        }
    }

    /// Takes another identity, so that nothing which was given this one is its own any more.
    pub(crate) fn replace(&self) {
        self.0.store(new_identity(), Relaxed("compared only, as `get` says"));
    }

    /// Assigns an identity: of several threads (or signal handlers) at the same time one succeeds.
    #[cold]
    fn assign(&self) -> u64 {
        let id = new_identity();
        if !keep(Step::AgreeOnIdentity) {
            self.0.store(id, MUTANT);
            return id;
        }
        let assigned = self.0.compare_exchange(0, id, Relaxed("one thread succeeds; see `get`"));
        assigned.map_or_else(|now| now, |_| id)
    }
}

/// Names a space among all that ever were in this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct SpaceId(u64);

/// The bit in a slot's owner that makes it a reservation. No identity is so large.
const RESERVED: u64 = 1 << 63;

impl SpaceId {
    /// The owner of a slot that was never attached.
    pub(crate) const NONE: Self = Self(0);

    /// As a number, and back.
    pub(crate) fn to_word(self) -> u64 {
        self.0
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(crate) fn of(identity: &Identity) -> Self {
        Self(identity.get())
    }

    #[inline]
    pub(crate) fn assigned(identity: &Identity) -> Self {
        Self(identity.get_or_assign())
    }

    /// The owner of a reservation in this space.
    pub(crate) fn reserved(self) -> Self {
        Self(self.0 | RESERVED)
    }

    /// Whether this is the owner of a reservation.
    pub(crate) fn is_reserved(self) -> bool {
        self.0 & RESERVED != 0
    }

    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}
