//! A progress bar on a terminal, nothing in a pipe.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// Counts pages, for whoever watches.
#[derive(Debug)]
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    /// A bar for so many pages on standard error, if that is a terminal.
    pub(crate) fn of(pages: usize) -> Self {
        Self(stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent}% of {len} pages, {eta}");
            let bar = ProgressBar::new(pages as u64);
            style.map_or(bar.clone(), |style| bar.with_style(style))
        }))
    }

    pub(crate) fn one_more(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
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
