//! What is measured.

pub(crate) use crate::layout::PAGE;

/// Bytes that a fault fills.
pub(crate) const GRANULES: [usize; 3] = [PAGE, 64 << 10, HUGE];

const HUGE: usize = 2 << 20;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Touched in each round.
    pub(crate) pages: usize,
}

/// What serves faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The faulting thread, in a signal handler.
    Signal,
    /// A thread.
    Thread,
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// Memory: the lower bound is only the ioctl.
    Memory,
    /// A file in the page cache: the lower bound is `pread` and the ioctl.
    File,
}

/// One way to fault, which pervma and a lower bound have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) mode: Mode,
    /// Bytes that a fault fills.
    pub(crate) granule: usize,
    pub(crate) from: From,
    /// Threads that touch.
    pub(crate) threads: usize,
}

impl Case {
    /// What pervma may take of the lower bound's time, if a signal handler serves.
    pub(crate) fn limit(&self) -> f64 {
        match (self.granule, self.from) {
            // The lower bound copies; what is read into a fresh huge page and moved is not copied.
            (HUGE, From::File) => 0.85,
            _ => 1.15,
        }
    }

    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for mode in [Mode::Signal, Mode::Thread] {
            for granule in GRANULES {
                for from in [From::Memory, From::File] {
                    for threads in [1, 2] {
                        cases.push(Self { mode, granule, from, threads });
                    }
                }
            }
        }
        cases
    }
}
