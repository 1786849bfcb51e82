//! What came of it, for people and as JSON.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use pervma_pager::Stats;
use serde::Serialize;

use crate::error::one_line;
use crate::page::PAGE;

/// A file paged in.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) file: PathBuf,
    pub(crate) bytes: usize,
    pub(crate) pages: usize,
    pub(crate) threads: usize,
    /// The time of the touching reads, all threads together.
    pub(crate) touching: Duration,
    pub(crate) counted: Stats,
    /// Of what the threads copied.
    pub(crate) sha256: String,
    /// Of what ordinary reads got.
    pub(crate) file_sha256: String,
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Json<'a> {
    file: &'a str,
    bytes: usize,
    pages: usize,
    threads: usize,
    mode: &'static str,
    granule: usize,
    churn: bool,
    faults: u64,
    ns_per_fault: f64,
    lookups_first_try: u64,
    lookups_retried: u64,
    lookups_slow: u64,
    writer_ops: u64,
    sha256: &'a str,
    matches: bool,
}

impl Report {
    /// Whether the bytes matched and every page came by a fault.
    pub(crate) fn passed(&self) -> bool {
        self.matches() && self.counted.faults >= self.pages as u64
    }

    /// One object on one line.
    ///
    /// # Errors
    ///
    /// None in practice: there is no map in it, and text is text.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        let json = Json {
            file: &self.file.to_string_lossy(),
            bytes: self.bytes,
            pages: self.pages,
            threads: self.threads,
            mode: "signal",
            granule: PAGE,
            churn: false,
            faults: self.counted.faults,
            ns_per_fault: (self.ns_per_fault() * 10.0).round() / 10.0,
            lookups_first_try: self.counted.lookups_first_try,
            lookups_retried: self.counted.lookups_retried,
            lookups_slow: self.counted.lookups_slow,
            // Edits by a thread that churns the address space meanwhile.
            writer_ops: 0,
            sha256: &self.sha256,
            matches: self.matches(),
        };
        serde_json::to_string(&json).map(|line| line + "\n")
    }

    fn matches(&self) -> bool {
        self.sha256 == self.file_sha256
    }

    /// The mean of the touching reads.
    fn ns_per_fault(&self) -> f64 {
        self.touching.as_nanos() as f64 / self.counted.faults.max(1) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { faults, lookups_first_try, lookups_retried, lookups_slow, .. } = self.counted;
        writeln!(f, "file      {}", one_line(&self.file))?;
        writeln!(
            f,
            "paged in  {} bytes, {} pages of {PAGE}, {} threads, random order",
            self.bytes, self.pages, self.threads
        )?;
        writeln!(f, "sha256    {}  as paged in", self.sha256)?;
        writeln!(f, "          {}  as read", self.file_sha256)?;
        writeln!(f, "faults    {faults}, {:.0} ns each", self.ns_per_fault())?;
        writeln!(
            f,
            "lookups   {lookups_first_try} at the first try, {lookups_retried} retried, \
             {lookups_slow} slow"
        )?;
        let verdict = match (self.passed(), self.matches()) {
            (true, _) => "every byte matches",
            (false, false) => "MISMATCH: the bytes differ (did the file change meanwhile?)",
            (false, true) => "MISMATCH: the bytes match, but pages came without a fault",
        };
        writeln!(f, "result    {verdict}")
    }
}
