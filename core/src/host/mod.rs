//! The platforms that come with the crate, and which of them types name when none is given.

#[cfg(any(pervma_model, all(feature = "std", any(target_os = "linux", target_os = "android"))))]
mod futex;
#[cfg(any(pervma_model, all(feature = "std", any(target_os = "linux", target_os = "android"))))]
mod futex_lock;
#[cfg(all(feature = "std", not(pervma_model)))]
mod lock;
#[cfg(pervma_model)]
mod model;
#[cfg(not(any(feature = "std", pervma_model)))]
mod none;
#[cfg(all(feature = "std", not(pervma_model)))]
mod os;
#[cfg(all(
    feature = "std",
    not(pervma_model),
    any(test, not(any(target_os = "linux", target_os = "android")))
))]
mod park;

#[cfg(not(any(feature = "std", pervma_model)))]
pub use none::NoPlatform;
#[cfg(pervma_model)]
pub use {futex::Left, futex_lock::FutexLock, model::Model};
#[cfg(all(feature = "std", not(pervma_model)))]
pub use {
    lock::StdLock,
    os::{StdMemory, StdPlatform},
};

/// The platform that types name when none is given.
#[cfg(all(feature = "std", not(pervma_model)))]
pub(crate) type DefaultPlatform = StdPlatform;

/// The platform that types name when none is given: none, without the feature `std`.
#[cfg(not(any(feature = "std", pervma_model)))]
pub(crate) type DefaultPlatform = NoPlatform;

/// The platform that types name when none is given.
#[cfg(pervma_model)]
pub(crate) type DefaultPlatform = Model;
