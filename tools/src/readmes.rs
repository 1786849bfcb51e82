//! The examples of all READMEs and of the guide, to be run as tests:
//! `cargo test --doc -p pervma-tools`. They stand here, and not with their packages, since a
//! package has no README but its own.

/// Declares an item that has such a file as its documents.
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

    GuideIntroduction: "../../docs/guide/src/introduction.md"
    GuideRuntime: "../../docs/guide/src/runtime.md"
    GuideEmulator: "../../docs/guide/src/emulator.md"
    GuidePager: "../../docs/guide/src/pager.md"
    GuideKernel: "../../docs/guide/src/kernel.md"
}
