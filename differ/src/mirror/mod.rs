//! A program that runs, and a model that makes each of its mapping calls, too.
//!
//! The program is traced, and stops at mapping calls only. After each the result and the whole map
//! must be the same on both sides; flags and counts are compared at intervals, and at forks and
//! exits. Calls on the same memory are let through one at a time, so that their order is known.
//!
//! What the calls do not show is a closed list, [`Fact`]: that fact alone is taken over from the
//! kernel. After a divergence the model is made anew, so that the rest can be compared.

mod ask;
mod call;
mod fact;
mod held;
mod record;
mod run;
mod space;
mod tracee;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use libc::pid_t;

pub use fact::Fact;
pub use record::{Kind, Moment, Named, Record, Span};
pub use run::mirror;
pub use space::{Mirrored, Pages, Rule};

use crate::run::Tally;
use crate::session::Difference;

/// What is run, and how.
#[derive(Clone, Debug)]
pub struct Command {
    /// The program, which is searched for as a shell does.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// After so many seconds everything that still runs is killed.
    pub limit: Option<u32>,
    /// Whether its standard output goes to standard error.
    pub output_to_errors: bool,
    /// Whether what a picture needs is noted.
    pub record: bool,
    /// A wrong rule of the model, to test the mirror.
    pub rule: Option<Rule>,
}

impl Command {
    /// A program, to be run to its end.
    ///
    /// ```no_run
    /// use pervma_differ::Machine;
    /// use pervma_differ::mirror::{Command, mirror};
    ///
    /// let report = mirror(&Machine::here()?, &Command::new("ls", ["-l"]))?;
    /// assert_eq!(report.divergences, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            limit: None,
            output_to_errors: false,
            record: false,
            rule: None,
        }
    }
}

/// How a program has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// How the program has ended.
    pub ended: Ended,
    /// Whether it was ended because the time was over.
    pub limited: bool,
    /// The number of calls that the model made, too.
    pub calls: u64,
    /// How often the two sides differed.
    pub divergences: u64,
    /// How often the model had to be made anew, for a reason that is no [`Fact`].
    pub resyncs: u64,
    /// Threads that were started.
    pub threads: u64,
    /// Processes that were started.
    pub forks: u64,
    /// Calls that had to wait for another one on the same memory.
    pub waited: u64,
    /// Each system call by its name, with what became of it.
    pub by_call: BTreeMap<&'static str, Tally>,
    /// What was taken over from the kernel.
    pub facts: BTreeMap<Fact, u64>,
    /// The first divergences.
    pub shown: Vec<Divergence>,
    /// How long it took.
    pub elapsed: Duration,
    /// How long of that the mirror worked, while some thread of the program was stopped.
    pub worked: Duration,
    /// What a picture is drawn from.
    pub record: Record,
}

impl Report {
    /// How many times as long it took as without the mirror's own work.
    #[must_use]
    pub fn slowdown(&self) -> f64 {
        let own = self.elapsed.saturating_sub(self.worked).as_secs_f64();
        self.elapsed.as_secs_f64() / own.max(1e-6)
    }
}

/// A call after which the two sides differed.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// The program.
    pub program: String,
    /// The thread.
    pub tid: pid_t,
    /// The call.
    pub call: String,
    /// The difference.
    pub difference: Difference,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, tid, call, difference } = self;
        write!(f, "{program}, thread {tid}: {call}\n{difference}")
    }
}

/// Why nothing was mirrored.
#[derive(Debug)]
pub enum MirrorError {
    /// The program could not be started.
    Start(PathBuf, io::Error),
    /// It may not be traced.
    Trace(io::Error),
    /// A call has succeeded that the model does not know.
    Unknown {
        /// The program.
        program: String,
        /// The call.
        call: String,
    },
    /// A program has begun of which no model can be made.
    Begin {
        /// The program.
        program: String,
        /// Why not.
        reason: io::Error,
    },
    /// Something else went wrong.
    Io(io::Error),
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(program, error) => write!(f, "{}: {error}", program.display()),
            Self::Trace(error) => write!(f, "no program can be traced here: {error}"),
            Self::Unknown { program, call } => {
                write!(f, "{program} uses {call}, which is not modelled")
            }
            Self::Begin { program, reason } => write!(f, "{program} cannot be mirrored: {reason}"),
            Self::Io(error) => write!(
                f,
                "the program could not be followed ({error}): it needs ptrace, /proc, pidfd_getfd and \
                 kcmp, and without privilege processes that are dumpable (PR_SET_DUMPABLE)"
            ),
        }
    }
}

impl std::error::Error for MirrorError {}

impl From<io::Error> for MirrorError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
