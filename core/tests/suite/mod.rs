//! The behaviour of an address space, as one suite for all implementations.

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
