//! The behaviour of an address space, as one suite for everything that claims it.

pub(crate) mod compare;
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

/// Runs everything on each world.
macro_rules! worlds {
    ($($name:ident: $world:ty,)*) => {$(
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
        }
    )*};
}

worlds! {
    oracle: subject::OracleWorld,
    edits: spaces::Spaces<pervma::StdPlatform, { spaces::IN_EDITS }>,
    waiting: spaces::Spaces<pervma::StdPlatform, { spaces::WAITING }>,
    excluding: spaces::Spaces<pervma::StdPlatform, { spaces::EXCLUDING }>,
    edits_with_spin_locks: spaces::Spaces<spaces::Spin, { spaces::IN_EDITS }>,
    waiting_with_spin_locks: spaces::Spaces<spaces::Spin, { spaces::WAITING }>,
    excluding_with_spin_locks: spaces::Spaces<spaces::Spin, { spaces::EXCLUDING }>,
}
