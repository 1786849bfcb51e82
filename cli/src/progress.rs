//! Progress, shown on a terminal only.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the line is drawn again, which shows that the program has not stopped.
const TICK: Duration = Duration::from_millis(100);

/// Parts are counted so many at a time: threads that count each would wait for each other.
const BATCH: usize = 256;

/// A line that is shown while it lives: what is being done, and how much of it.
#[derive(Debug)]
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Shows work of unknown length.
    pub(crate) fn of_unknown(what: &'static str) -> Self {
        Self::new(ProgressBar::new_spinner, "{spinner} {msg}, {elapsed}", what)
    }

    /// Shows work that has so many parts.
    pub(crate) fn of(what: &'static str, count: usize) -> Self {
        let bar = || ProgressBar::new(count as u64);
        Self::new(bar, "{spinner} {msg} {bar:40} {percent}% of {human_len}, {eta}", what)
    }

    fn new(bar: impl FnOnce() -> ProgressBar, template: &str, what: &'static str) -> Self {
        Self(stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(template);
            let bar = bar().with_message(what);
            let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
            // At once: the work may be over before the first tick.
            bar.tick();
            bar.enable_steady_tick(TICK);
            bar
        }))
    }

    /// Counts one more part; this thread has done `before` of them.
    pub(crate) fn one_more(&self, before: usize) {
        if let Some(bar) = &self.0
            && before % BATCH == BATCH - 1
        {
            bar.inc(BATCH as u64);
        }
    }

    /// Sets how many parts are done.
    pub(crate) fn done(&self, parts: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(parts);
        }
    }

    /// Changes what is said to be done.
    pub(crate) fn says(&self, what: impl FnOnce() -> String) {
        if let Some(bar) = &self.0 {
            bar.set_message(what());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
