//! Programs in C and C++, in the folders `examples` and `tests/c`.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod build;
mod examples;
mod misuse;
