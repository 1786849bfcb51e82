//! The report, for people and as JSON.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use pervma_pager::Stats;
use serde::Serialize;

use crate::args::Mode;
use crate::churn::Churned;
use crate::error::one_line;
use crate::input::PAGE;
use crate::latency::Histogram;
use crate::touch::Touched;
use crate::words::{count, tenths, time};

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
    /// The bound, in bytes.
    pub(crate) resident: Option<usize>,
    /// Whether it was chosen for a file that is larger than memory.
    pub(crate) chosen: bool,
    /// The most bytes that were there at a time, if there was a bound.
    pub(crate) most_resident: Option<usize>,
    pub(crate) touched: Touched,
    /// Faults until every page was touched.
    pub(crate) first_faults: u64,
    pub(crate) counted: Stats,
    pub(crate) churned: Option<Churned>,
    pub(crate) compared: Vec<Compared>,
    /// The hash of what is in the region.
    pub(crate) sha256: String,
    /// The hash of what ordinary reads got.
    pub(crate) file_sha256: String,
}

/// How the same pages were touched without the region.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) name: &'static str,
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) touched: Touched,
}

/// What `--json` prints, in this order.
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
    #[serde(flatten)]
    times: Times,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compared: Vec<ComparedJson>,
    sha256: &'a str,
    matches: bool,
}

/// The times of touches, as `--json` prints them.
#[derive(Serialize)]
struct Times {
    /// From the first touch to the last check.
    wall_s: f64,
    /// The time of the touches themselves, of the thread that touched longest.
    touching_s: f64,
    mb_per_s: f64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    longest_ns: u64,
}

#[derive(Serialize)]
struct ComparedJson {
    name: &'static str,
    #[serde(flatten)]
    times: Times,
}

impl Times {
    fn of(touched: &Touched, bytes: usize) -> Self {
        let histogram = &touched.latency.histogram;
        Self {
            wall_s: seconds(touched.wall),
            touching_s: seconds(touched.touching),
            mb_per_s: tenths(mb_per_s(touched, bytes)),
            p50_ns: histogram.per_mille(500),
            p99_ns: histogram.per_mille(990),
            p999_ns: histogram.per_mille(999),
            longest_ns: histogram.longest(),
        }
    }
}

/// Returns seconds, rounded to the microsecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

fn mb_per_s(touched: &Touched, bytes: usize) -> f64 {
    bytes as f64 / 1e6 / touched.touching.as_secs_f64().max(1e-9)
}

impl Report {
    /// Returns whether the bytes matched, every page was faulted in, and churning was enough, if
    /// there was any.
    pub(crate) fn passed(&self) -> bool {
        self.matches() && self.all_by_faults() && self.complaint().is_none()
    }

    /// Returns whether enough of a region's pages were faulted again, and lookups met changes.
    pub(crate) fn is_churned(counted: &Stats, pages: usize) -> bool {
        let again = counted.pages.saturating_sub(pages as u64);
        again >= pages.div_ceil(10) as u64 && counted.lookups_retried + counted.lookups_slow > 0
    }

    /// Returns one JSON object on one line.
    ///
    /// # Errors
    ///
    /// None in practice: numbers, texts and lists can always be written.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        let compared = |compared: &Compared| ComparedJson {
            name: compared.name,
            times: Times::of(&compared.touched, compared.len),
        };
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
            ns_per_page: tenths(self.ns_per(self.touched.latency.histogram.count())),
            times: Times::of(&self.touched, self.touched_bytes()),
            lookups_first_try: self.counted.lookups_first_try,
            lookups_retried: self.counted.lookups_retried,
            lookups_slow: self.counted.lookups_slow,
            pages_filled: self.counted.pages,
            resident: self.resident,
            most_resident: self.most_resident,
            evicted: self.counted.evicted,
            serves_system_calls: self.serves_system_calls,
            // The changes of the thread that churns.
            writer_ops: self.churned.as_ref().map_or(0, |churned| churned.ops),
            writer_ops_per_s: tenths(self.ops_per_s()),
            compared: self.compared.iter().map(compared).collect(),
            sha256: &self.sha256,
            matches: self.matches(),
        };
        serde_json::to_string(&json).map(|line| line + "\n")
    }

    fn matches(&self) -> bool {
        let own = self.churned.as_ref().is_none_or(|churned| churned.matches);
        self.sha256 == self.file_sha256 && self.touched.matches && own
    }

    fn all_by_faults(&self) -> bool {
        let granules = self.bytes.div_ceil(self.granule) as u64;
        self.counted.pages >= self.pages as u64 && self.counted.faults >= granules
    }

    /// Says what is missing, if churning was not enough.
    fn complaint(&self) -> Option<&'static str> {
        self.churned.as_ref()?;
        let churned = Self::is_churned(&self.counted, self.pages);
        (!churned).then_some("too few pages were faulted again, or no lookup met a change")
    }

    /// Returns the touched bytes: all but the churning thread's own pages.
    fn touched_bytes(&self) -> usize {
        let touches = usize::try_from(self.touched.latency.histogram.count()).unwrap_or(0);
        self.bytes.min(touches * PAGE)
    }

    /// Returns the time of all touches over a count, in ns.
    fn ns_per(&self, count: u64) -> f64 {
        self.touched.sum.as_nanos() as f64 / count.max(1) as f64
    }

    fn ops_per_s(&self) -> f64 {
        let ops = |churned: &Churned| churned.ops as f64 / churned.time.as_secs_f64();
        self.churned.as_ref().map_or(0.0, ops)
    }
}

/// The width of the bars of a histogram in a terminal, in columns.
const BAR: u64 = 40;

/// Writes a line for each power of two; its bar shows how many times it has.
fn write_histogram(f: &mut fmt::Formatter<'_>, histogram: &Histogram) -> fmt::Result {
    let powers = histogram.by_power();
    let most = powers.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    for (power, count) in powers {
        let eighths = usize::try_from(count * BAR * 8 / most).unwrap_or(0);
        let whole = "█".repeat(eighths / 8);
        let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        writeln!(f, "  {:>9}+ {whole}{part} {count}", time(power as f64))?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { faults, pages, evicted, .. } = self.counted;
        let Stats { lookups_first_try, lookups_retried, lookups_slow, .. } = self.counted;
        writeln!(f, "file      {}", one_line(&self.file))?;
        writeln!(
            f,
            "paged in  {}: {} of {PAGE}, {}, random order",
            count(self.bytes, "byte"),
            count(self.pages, "page"),
            count(self.threads, "thread")
        )?;
        let served = match (self.mode, self.serves_system_calls) {
            (Mode::Signal, _) => "in the signal handler",
            (Mode::Thread, true) => "by a thread, system calls too",
            (Mode::Thread, false) => "by a thread, user accesses only (no privilege)",
        };
        writeln!(f, "served    {served}, {} at a time", count(self.granule, "byte"))?;
        let touched = &self.touched;
        let per_mille = |at| time(touched.latency.histogram.per_mille(at) as f64);
        writeln!(
            f,
            "time      {} touching pages, {:.0} MB/s; {} with each page checked",
            time(touched.touching.as_nanos() as f64),
            mb_per_s(touched, self.touched_bytes()),
            time(touched.wall.as_nanos() as f64)
        )?;
        writeln!(
            f,
            "touches   p50 {}, p99 {}, p99.9 {}, longest {}",
            per_mille(500),
            per_mille(990),
            per_mille(999),
            time(touched.latency.histogram.longest() as f64)
        )?;
        write_histogram(f, &touched.latency.histogram)?;
        if !self.compared.is_empty() {
            writeln!(
                f,
                "compared  until a page's first byte can be used; the file was read before"
            )?;
            writeln!(f, "  {:>9}  {:>9} {:>9} {:>9} {:>9}", "", "p50", "p99", "p99.9", "MB/s")?;
        }
        for Compared { name, len, touched } in &self.compared {
            let per_mille = |at| time(touched.latency.histogram.per_mille(at) as f64);
            writeln!(
                f,
                "  {name:>9}  {:>9} {:>9} {:>9} {:>9.0}",
                per_mille(500),
                per_mille(990),
                per_mille(999),
                mb_per_s(touched, *len)
            )?;
        }
        writeln!(f, "sha256    {}  as paged in", self.sha256)?;
        writeln!(f, "          {}  as read", self.file_sha256)?;
        writeln!(
            f,
            "faults    {faults}, {:.0} ns each, {:.0} ns a page at first",
            self.ns_per(self.first_faults),
            self.ns_per(touched.latency.histogram.count())
        )?;
        writeln!(
            f,
            "lookups   {lookups_first_try} at the first try, {lookups_retried} retried, \
             {lookups_slow} slow"
        )?;
        if let (Some(bound), Some(most)) = (self.resident, self.most_resident) {
            let evicted = count(usize::try_from(evicted).unwrap_or(usize::MAX), "page");
            let chosen = if self.chosen { "; the file is larger than memory" } else { "" };
            writeln!(f, "resident  {most} bytes at most of {bound}, {evicted} given back{chosen}")?;
        }
        if let Some(churned) = &self.churned {
            let again = pages.saturating_sub(self.pages as u64);
            let again = count(usize::try_from(again).unwrap_or(usize::MAX), "page");
            writeln!(
                f,
                "churned   {} changes, {:.0} a second, {again} faulted again",
                churned.ops,
                self.ops_per_s(),
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
