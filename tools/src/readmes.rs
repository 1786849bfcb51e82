//! The examples of all READMEs, to be run as tests: `cargo test --doc -p pervma-tools`. They stand
//! here, and not with their packages, since a package has no README but its own.

/// Declares an item that has a README as its documents.
#[cfg(doctest)]
macro_rules! readmes {
    ($($name:ident: $file:literal)*) => {
        $(#[doc = include_str!($file)] pub struct $name;)*
    };
}

#[cfg(doctest)]
readmes! {
    Repository: "../../README.md"
    Core: "../../core/README.md"
    Linux: "../../linux/README.md"
    Pager: "../../pager/README.md"
}
