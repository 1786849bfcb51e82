//! What came of it, for people and as JSON.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use pervma_pager::Stats;
use serde::Serialize;

use crate::args::Mode;
use crate::churn::Churned;
use crate::error::one_line;
use crate::page::PAGE;

/// A file paged in.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) file: PathBuf,
    pub(crate) bytes: usize,
    pub(crate) pages: usize,
    pub(crate) threads: usize,
    pub(crate) mode: Mode,
    /// Bytes.
    pub(crate) granule: usize,
    pub(crate) serves_system_calls: bool,
    /// The bound that was asked for, in bytes.
    pub(crate) resident: Option<usize>,
    /// The most bytes that were there at a time, if there was a bound.
    pub(crate) most_resident: Option<usize>,
    /// The time of the touching reads, all threads together.
    pub(crate) touching: Duration,
    /// Faults until every page was touched.
    pub(crate) first_faults: u64,
    /// Whether what was read again was the same.
    pub(crate) same_again: bool,
    pub(crate) counted: Stats,
    pub(crate) churned: Option<Churned>,
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
    mode: Mode,
    granule: usize,
    churn: bool,
    faults: u64,
    ns_per_fault: f64,
    ns_per_page: f64,
    lookups_first_try: u64,
    lookups_retried: u64,
    lookups_slow: u64,
    pages_filled: u64,
    resident: Option<usize>,
    most_resident: Option<usize>,
    evicted: u64,
    serves_system_calls: bool,
    writer_ops: u64,
    writer_ops_per_s: f64,
    sha256: &'a str,
    matches: bool,
}

/// Changes a second that a churning thread must reach.
const LEAST_OPS: f64 = 1000.0;

impl Report {
    /// Whether the bytes matched and every page came by a fault; and whether it was churned, if it
    /// was to be.
    pub(crate) fn passed(&self) -> bool {
        self.matches() && self.all_by_faults() && self.complaint().is_none()
    }

    /// Whether enough pages were faulted again, of a region of so many, and lookups met changes.
    pub(crate) fn is_churned(counted: &Stats, pages: usize) -> bool {
        let again = counted.pages.saturating_sub(pages as u64);
        again >= pages.div_ceil(10) as u64 && counted.lookups_retried + counted.lookups_slow > 0
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
            mode: self.mode,
            granule: self.granule,
            churn: self.churned.is_some(),
            faults: self.counted.faults,
            ns_per_fault: tenths(self.ns_per(self.first_faults)),
            ns_per_page: tenths(self.ns_per(self.pages as u64)),
            lookups_first_try: self.counted.lookups_first_try,
            lookups_retried: self.counted.lookups_retried,
            lookups_slow: self.counted.lookups_slow,
            pages_filled: self.counted.pages,
            resident: self.resident,
            most_resident: self.most_resident,
            evicted: self.counted.evicted,
            serves_system_calls: self.serves_system_calls,
            // Changes by the thread that churns.
            writer_ops: self.churned.as_ref().map_or(0, |churned| churned.ops),
            writer_ops_per_s: tenths(self.ops_per_s()),
            sha256: &self.sha256,
            matches: self.matches(),
        };
        serde_json::to_string(&json).map(|line| line + "\n")
    }

    fn matches(&self) -> bool {
        let own = self.churned.as_ref().is_none_or(|churned| churned.matches);
        self.sha256 == self.file_sha256 && self.same_again && own
    }

    fn all_by_faults(&self) -> bool {
        let granules = self.bytes.div_ceil(self.granule) as u64;
        self.counted.pages >= self.pages as u64 && self.counted.faults >= granules
    }

    /// What a churned run lacks.
    fn complaint(&self) -> Option<&'static str> {
        self.churned.as_ref()?;
        if !Self::is_churned(&self.counted, self.pages) {
            Some("too few pages were faulted again, or no lookup met a change")
        } else if self.ops_per_s() < LEAST_OPS {
            Some("too few changes a second")
        } else {
            None
        }
    }

    /// The mean of the touching reads.
    fn ns_per(&self, count: u64) -> f64 {
        self.touching.as_nanos() as f64 / count.max(1) as f64
    }

    fn ops_per_s(&self) -> f64 {
        let ops = |churned: &Churned| churned.ops as f64 / churned.time.as_secs_f64();
        self.churned.as_ref().map_or(0.0, ops)
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { faults, pages, evicted, .. } = self.counted;
        let Stats { lookups_first_try, lookups_retried, lookups_slow, .. } = self.counted;
        writeln!(f, "file      {}", one_line(&self.file))?;
        writeln!(
            f,
            "paged in  {} bytes, {} pages of {PAGE}, {} threads, random order",
            self.bytes, self.pages, self.threads
        )?;
        let served = match (self.mode, self.serves_system_calls) {
            (Mode::Signal, _) => "in the signal handler",
            (Mode::Thread, true) => "by a thread, system calls too",
            (Mode::Thread, false) => "by a thread, user accesses only (no privilege)",
        };
        writeln!(f, "served    {served}, {} bytes at a time", self.granule)?;
        writeln!(f, "sha256    {}  as paged in", self.sha256)?;
        writeln!(f, "          {}  as read", self.file_sha256)?;
        writeln!(
            f,
            "faults    {faults}, {:.0} ns each, {:.0} ns a page at first",
            self.ns_per(self.first_faults),
            self.ns_per(self.pages as u64)
        )?;
        writeln!(
            f,
            "lookups   {lookups_first_try} at the first try, {lookups_retried} retried, \
             {lookups_slow} slow"
        )?;
        if let (Some(bound), Some(most)) = (self.resident, self.most_resident) {
            writeln!(f, "resident  {most} bytes at most of {bound}, {evicted} pages given back")?;
        }
        if let Some(churned) = &self.churned {
            writeln!(
                f,
                "churned   {} changes, {:.0} a second, {} pages faulted again",
                churned.ops,
                self.ops_per_s(),
                pages.saturating_sub(self.pages as u64)
            )?;
        }
        let verdict = match (self.matches(), self.all_by_faults(), self.complaint()) {
            (false, ..) => "MISMATCH: the bytes differ (did the file change meanwhile?)",
            (true, false, _) => "MISMATCH: the bytes match, but pages came without a fault",
            (true, true, Some(complaint)) => complaint,
            (true, true, None) => "every byte matches",
        };
        writeln!(f, "result    {verdict}")
    }
}
