//! [`pervma_linux`] compared with the running kernel, call by call.
//!
//! Random steps (system calls, touches of memory, forks, limits, changes of files) are made by a
//! process and by the model. After each step the result, the error and the whole map must be the
//! same; flags and counts are compared at intervals. The model never learns anything from the
//! kernel after the process was started. On a difference the steps to it are shrunk.
//!
//! The steps that the generator excludes are in [`exceptions`], each with a reason that is tested.
//! The process itself is set up so that it can be compared: it starts with one mapping, a page of
//! instructions; no address in it is random; huge pages are switched off, since where they are
//! decides what merges and is not in the map; and it has no `CAP_SYS_ADMIN`, with which it would
//! damage memory. One process in four keeps `CAP_IPC_LOCK` and `CAP_SYS_RAWIO`, if this one has
//! them, and drops them and takes them up again.
//!
//! A program that runs is compared in the same way by [`mirror`], its threads included.
//!
//! What random steps do not compare: settings that all processes of the machine share (`sysctl`),
//! while they change; what is in pages; calls of several threads; files on disks other than those
//! with ext4 (the others are in memory); what happens when memory runs out. Such rules are tested
//! by cases in `linux/tests`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod child;
mod compare;
pub mod exceptions;
mod files;
mod generate;
mod guards;
mod machine;
pub mod mirror;
mod model;
mod op;
mod outcome;
mod parallel;
mod probe;
mod ptrace;
mod random;
mod replay;
mod run;
mod scene;
mod session;
mod shrink;
mod syscall;

pub use child::{InitialState, Privileges, Special};
pub use files::{OpenFiles, Opened};
pub use machine::Machine;
pub use model::{Model, Subject};
pub use op::{Capability, NAMES, Op, Which};
pub use outcome::Outcome;
pub use parallel::{Orders, Rounds};
pub use replay::{Found, replay, replay_after, special};
pub use run::{Divergence, Options, Progress, Report, Tally, run, run_after};
pub use scene::Scene;
pub use session::Difference;
