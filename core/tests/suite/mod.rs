//! The behaviour of an address space, as one suite for all implementations.
//!
//! # What its random operations do not bring about
//!
//! Each record is one operation of one thread on one of two spaces, between which an edit may go
//! on. What that cannot produce, why it is safe to leave it out here, and where it is tested:
//!
//! - *Other threads.* The oracle has no order of its own for them. What a reader may see and what
//!   waits for what: `stress`, `waiting`, `edit_range`, `give_way`, and every interleaving in the
//!   models.
//! - *Read locks while a change goes on, and deadlines.* A thread that holds one is refused every
//!   change, so nothing is left to compare: `space`, `owned` guards in `pins`, `changes`.
//! - *A second exclusion of a thread*, which would wait for itself: `waiting`.
//! - *Memory that runs out, user code that panics or calls back*: each allocation and each call in
//!   turn, in `failures` and `reentry`; the changes there are compared with what was before.
//! - *Payloads of other types.* Changes see a payload only through `split` and `merge`, and `Part`
//!   refuses either, agrees, or counts where it lies, by its letter: `payloads`.
//! - *More than 1,024 granules*, thus trees of more than a few levels: each level is alike, and
//!   the suite runs with small nodes, too (it is a module of the crate's unit tests).
//! - *Signal handlers, fork(2)*: `handler`, `stepping`, `signals`; `fork`, `atfork`.

pub(crate) mod compare;
pub(crate) mod identities;
pub(crate) mod op;
pub(crate) mod part;
pub(crate) mod spaces;
pub(crate) mod subject;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod edges;
#[cfg(test)]
mod picture;
#[cfg(test)]
mod random;

/// Runs everything on each world; the last on those whose VMAs have identities.
macro_rules! worlds {
    ($($name:ident: $world:ty $(, $identities:ident)?;)*) => {$(
        #[cfg(test)]
        mod $name {
            use super::*;

            #[test]
            fn cases() {
                cases::run::<$world>();
            }

            #[test]
            fn bad_ranges() {
                edges::bad_ranges::<$world>();
            }

            #[test]
            fn gaps() {
                edges::gaps::<$world>();
            }

            #[test]
            fn ends() {
                edges::ends::<$world>();
            }

            #[test]
            fn random() {
                random::run::<$world>();
            }

            $(
                #[test]
                fn $identities() {
                    identities::run::<$world>();
                }
            )?
        }
    )*};
}

worlds! {
    oracle: subject::OracleWorld;
    edits: spaces::Spaces<pervma::StdPlatform, { spaces::IN_EDITS }>, identities;
    waiting: spaces::Spaces<pervma::StdPlatform, { spaces::WAITING }>, identities;
    excluding: spaces::Spaces<pervma::StdPlatform, { spaces::EXCLUDING }>, identities;
    edits_with_spin_locks: spaces::Spaces<spaces::Spin, { spaces::IN_EDITS }>, identities;
    waiting_with_spin_locks: spaces::Spaces<spaces::Spin, { spaces::WAITING }>, identities;
    excluding_with_spin_locks: spaces::Spaces<spaces::Spin, { spaces::EXCLUDING }>, identities;
}
