//! Outcomes of steps.

use std::fmt;
use std::io;

use pervma_linux::{Errno, Signal};

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The system call returned this, where negative numbers are errors.
    Returned(i64),
    /// The memory was touched, or the thread got a signal.
    Touched(Result<(), Signal>),
    /// It was done, and nothing is returned that could be compared.
    Done,
}

impl Outcome {
    /// The outcome of a call on the model that returns a number.
    pub fn of(result: Result<usize, Errno>) -> Self {
        Self::Returned(match result {
            Ok(value) => i64::try_from(value).unwrap_or(i64::MAX),
            Err(error) => -i64::from(error.number()),
        })
    }

    /// The outcome of a call on the model that returns nothing.
    pub fn done(result: Result<(), Errno>) -> Self {
        Self::of(result.map(|()| 0))
    }

    /// The outcome of a call that this process has made.
    pub(crate) fn of_io(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Returned(0),
            Err(error) => Self::error(error.raw_os_error().unwrap_or(i32::MAX)),
        }
    }

    /// A call that has failed with this number.
    pub(crate) fn error(number: i32) -> Self {
        Self::Returned(-i64::from(number))
    }

    /// Returns the error number, if it is an error.
    #[must_use]
    pub fn errno(self) -> Option<i32> {
        match self {
            Self::Returned(error @ -4095..0) => i32::try_from(-error).ok(),
            _ => None,
        }
    }

    /// Whether the step did what it should.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.errno().is_none() && !matches!(self, Self::Touched(Err(_)))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(value) => match self.errno() {
                Some(error) => write!(f, "{} ({error})", errno_name(error)),
                None => write!(f, "{value:#x}"),
            },
            Self::Touched(Ok(())) | Self::Done => f.write_str("done"),
            Self::Touched(Err(signal)) => write!(f, "{signal:?}"),
        }
    }
}

/// Returns the name of an error number that mapping calls return.
#[must_use]
pub(crate) fn errno_name(error: i32) -> &'static str {
    let known = u16::try_from(error).ok().and_then(Errno::new);
    known.and_then(Errno::name).unwrap_or("another error")
}
