//! [`pervma_linux`] compared with the running kernel, call by call.
//!
//! Random steps (system calls, touches of memory, forks, limits) are made by a process, and by the
//! model. After each the result, the error and the whole map must be the same; flags and counts at
//! intervals. The model never learns anything from the kernel after the process was born. On a
//! difference the steps to it are made as few as possible.
//!
//! What is not compared: what is in pages; calls of several threads; rules for the privileged, since
//! the process has given its capabilities up; names of anonymous memory, but for taking them away;
//! attributes of files, and files on other disks than those with ext4 (the others are in memory); what
//! happens when memory runs out. Such rules are tried by hand in `linux/tests`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod child;
mod compare;
mod files;
mod generate;
mod machine;
mod model;
mod op;
mod outcome;
mod random;
mod run;
mod session;
mod shrink;

pub use machine::Machine;
pub use model::{Model, Subject};
pub use op::{Op, Which};
pub use outcome::Outcome;
pub use run::{Divergence, Found, Options, Report, Tally, replay, replay_after, run, run_after};
pub use session::Difference;
