//! `working-set`: what is in records of what clients asked for, and how far they overlap.

use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pervma_serve::working_set::WorkingSet;
use plotters::prelude::*;
use serde::Serialize;

use crate::error::{Error, one_line};
use crate::words::{count, tenths, time};

/// What is said of records.
#[derive(Debug)]
pub(crate) struct Report {
    records: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    file: PathBuf,
    set: WorkingSet,
    /// What of the source it has, in ascending order, none next to another.
    parts: Vec<Range<u64>>,
}

#[derive(Serialize)]
struct RecordJson<'r> {
    file: &'r str,
    granule: u64,
    granules: usize,
    bytes: u64,
    runs: usize,
    in_order: f64,
    micros: u64,
    source_bytes: Option<u64>,
}

#[derive(Serialize)]
struct OverlapJson<'r> {
    of: &'r str,
    with: &'r str,
    bytes: u64,
    /// Of what either has.
    share: f64,
}

/// Reads a record.
pub(crate) fn read(file: &Path) -> Result<WorkingSet, Error> {
    let opened = File::open(file).map_err(Into::into);
    opened
        .and_then(|opened| WorkingSet::read(BufReader::new(opened)))
        .map_err(|reason| Error::WorkingSet { file: file.to_owned(), reason })
}

impl Report {
    /// Reads records.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self, Error> {
        let read = |file: &PathBuf| {
            let set = read(file)?;
            let parts = parts(&set);
            Ok(Record { file: file.clone(), set, parts })
        };
        Ok(Self { records: files.iter().map(read).collect::<Result<_, Error>>()? })
    }

    /// Each record with each one that follows.
    fn pairs(&self) -> impl Iterator<Item = (&Record, &Record)> {
        let records = self.records.iter().enumerate();
        records.flat_map(|(at, one)| self.records[at + 1..].iter().map(move |other| (one, other)))
    }

    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        let names: Vec<_> =
            self.records.iter().map(|record| record.file.to_string_lossy()).collect();
        let records: Vec<_> = self
            .records
            .iter()
            .zip(&names)
            .map(|(record, file)| RecordJson {
                file,
                granule: record.set.granule,
                granules: record.set.touches.len(),
                bytes: len(&record.parts),
                runs: record.set.runs().len(),
                in_order: tenths(record.in_order()),
                micros: record.lasts().as_micros() as u64,
                source_bytes: record.set.source.as_ref().map(|source| source.size()),
            })
            .collect();
        let named = |record: &Record| record.file.to_string_lossy().into_owned();
        let pairs: Vec<_> = self
            .pairs()
            .map(|(one, other)| (named(one), named(other), overlap(one, other)))
            .collect();
        let overlaps: Vec<_> = pairs
            .iter()
            .map(|(of, with, (bytes, share))| OverlapJson {
                of,
                with,
                bytes: *bytes,
                share: tenths(*share),
            })
            .collect();
        let json = serde_json::json!({ "records": records, "overlaps": overlaps });
        serde_json::to_string(&json).map(|json| json + "\n")
    }

    /// Draws offset by time of all records, each in a colour of its own.
    pub(crate) fn draw(&self, file: &Path) -> Result<(), Error> {
        self.draw_into(file)
            .map_err(|error| Error::Picture { file: file.to_owned(), reason: error.to_string() })
    }

    fn draw_into(&self, file: &Path) -> Result<(), Box<dyn StdError>> {
        /// Cells of the picture: what lies in the same one is drawn once.
        const CELLS: (u64, u64) = (600, 400);
        let touches = || self.records.iter().flat_map(|record| &record.set.touches);
        let end = touches().map(|touch| touch.offset).max().unwrap_or(0) + 1;
        let is_timed = touches().any(|touch| !touch.after.is_zero());
        let at = |number: usize, after: Duration| {
            if is_timed { after.as_micros() as u64 } else { number as u64 }
        };
        let last = self
            .records
            .iter()
            .flat_map(|record| record.set.touches.iter().enumerate())
            .map(|(number, touch)| at(number, touch.after))
            .max()
            .unwrap_or(0)
            + 1;
        let cell = |value: u64, of: u64, cells: u64| {
            (u128::from(value) * u128::from(cells) / u128::from(of)) as u64
        };
        let mut svg = String::new();
        {
            let picture = SVGBackend::with_string(&mut svg, (960, 540)).into_drawing_area();
            picture.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&picture)
                .caption("what was asked for first, offset by time", ("sans-serif", 16))
                .margin(10)
                .margin_right(40)
                .x_label_area_size(30)
                .y_label_area_size(80)
                .build_cartesian_2d(0.0..CELLS.0 as f64, 0.0..CELLS.1 as f64)?;
            let along = |x: &f64| {
                let value = x / CELLS.0 as f64 * last as f64;
                if is_timed { time(value * 1e3) } else { format!("{value:.0}") }
            };
            let up = |y: &f64| size(y / CELLS.1 as f64 * end as f64);
            chart
                .configure_mesh()
                .x_label_formatter(&along)
                .y_label_formatter(&up)
                .max_light_lines(1)
                .draw()?;
            for (number, record) in self.records.iter().enumerate() {
                let mut cells: Vec<_> = record
                    .set
                    .touches
                    .iter()
                    .enumerate()
                    .map(|(number, touch)| {
                        let x = cell(at(number, touch.after), last, CELLS.0);
                        (x, cell(touch.offset, end, CELLS.1))
                    })
                    .collect();
                cells.sort_unstable();
                cells.dedup();
                let color = Palette99::pick(number).to_rgba();
                let drawn = chart.draw_series(cells.into_iter().map(|(x, y)| {
                    let (x, y) = (x as f64, y as f64);
                    Rectangle::new([(x, y), (x + 1.0, y + 1.0)], color.filled())
                }))?;
                drawn.label(one_line(&record.file)).legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled())
                });
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK)
                .draw()?;
            picture.present()?;
        }
        Ok(std::fs::write(file, svg)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in &self.records {
            let (granules, runs) = (record.set.touches.len(), record.set.runs().len());
            let mean = granules as f64 / runs.max(1) as f64;
            writeln!(
                f,
                "{}: {} of {}, {}; {} of {mean:.1} on average, {:.1} % in order; {}",
                one_line(&record.file),
                count(granules, "granule"),
                size(record.set.granule as f64),
                size(len(&record.parts) as f64),
                count(runs, "run"),
                record.in_order(),
                match record.lasts() {
                    Duration::ZERO => "times are not known".to_owned(),
                    lasts => format!("within {}", time(lasts.as_nanos() as f64)),
                },
            )?;
        }
        for (one, other) in self.pairs() {
            let (bytes, share) = overlap(one, other);
            let of = |record: &Record| 100.0 * bytes as f64 / len(&record.parts).max(1) as f64;
            writeln!(
                f,
                "{} and {}: {} in both, {:.1} % and {:.1} % of them, {share:.1} % of what either has",
                one_line(&one.file),
                one_line(&other.file),
                size(bytes as f64),
                of(one),
                of(other),
            )?;
        }
        Ok(())
    }
}

impl Record {
    /// How many granules lie behind the one that was touched before, in percent.
    fn in_order(&self) -> f64 {
        let (all, runs) = (self.set.touches.len(), self.set.runs().len());
        100.0 * (all - runs) as f64 / all.max(2).saturating_sub(1) as f64
    }

    fn lasts(&self) -> Duration {
        self.set.touches.iter().map(|touch| touch.after).max().unwrap_or_default()
    }
}

/// What of the source a record has, in ascending order.
fn parts(set: &WorkingSet) -> Vec<Range<u64>> {
    let mut runs = set.runs();
    runs.sort_unstable_by_key(|run| run.start);
    let mut parts: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match parts.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => parts.push(run),
        }
    }
    parts
}

fn len(parts: &[Range<u64>]) -> u64 {
    parts.iter().map(|part| part.end - part.start).sum()
}

/// Bytes that both have, and their share of what either has, in percent.
fn overlap(one: &Record, other: &Record) -> (u64, f64) {
    let (mut left, mut right) = (one.parts.iter().peekable(), other.parts.iter().peekable());
    let mut both = 0;
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        both += a.end.min(b.end).saturating_sub(a.start.max(b.start));
        if a.end <= b.end {
            left.next()
        } else {
            right.next()
        };
    }
    let either = len(&one.parts) + len(&other.parts) - both;
    (both, 100.0 * both as f64 / either.max(1) as f64)
}

/// A number of bytes, with the unit that fits.
fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0 && value.fract() != 0.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use pervma_serve::working_set::Touch;

    use super::*;

    fn record(offsets: &[u64], granule: u64) -> Record {
        let touch = |&offset: &u64| Touch { offset, after: Duration::ZERO };
        let set =
            WorkingSet { granule, source: None, touches: offsets.iter().map(touch).collect() };
        let parts = parts(&set);
        Record { file: PathBuf::from("a"), set, parts }
    }

    #[test]
    fn what_both_have_is_counted_whatever_the_granules() {
        let small = record(&[8192, 0, 4096, 65536], 4096);
        let large = record(&[0, 1 << 20], 65536);
        assert_eq!(small.parts, [0..12288, 65536..69632]);
        assert_eq!(overlap(&small, &large).0, 12288);
        assert_eq!(overlap(&large, &small).0, 12288);
        assert_eq!(overlap(&small, &small), (16384, 100.0));
        assert_eq!(overlap(&record(&[], 4096), &record(&[], 4096)), (0, 0.0));
    }

    #[test]
    fn order_is_of_each_but_the_first() {
        assert_eq!(record(&[0, 4096, 8192], 4096).in_order(), 100.0);
        assert_eq!(record(&[8192, 4096, 0], 4096).in_order(), 0.0);
        assert_eq!(record(&[], 4096).in_order(), 0.0);
    }

    #[test]
    fn sizes_have_units() {
        let sizes = [0.0, 4096.0, 1.5 * 1024.0, 2097152.0, 1e12].map(size);
        assert_eq!(sizes, ["0 bytes", "4 KiB", "1.5 KiB", "2 MiB", "931 GiB"]);
    }
}
