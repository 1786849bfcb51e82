//! Functions that are `const` where atomics can be.

/// Declares a function `const`, except under the model checker, whose atomics are built at run
/// time.
macro_rules! const_unless_model {
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        #[cfg(not(pervma_model))]
        $(#[$meta])*
        $vis const fn $($rest)*
        #[cfg(pervma_model)]
        $(#[$meta])*
        $vis fn $($rest)*
    };
}
pub(crate) use const_unless_model;
