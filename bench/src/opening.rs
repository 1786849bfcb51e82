//! What docs/benchmarks.md opens with: one plot, and a table of a few lines.

use std::fmt::Write;

use crate::report::{Section, Table, number};

/// The maps under one lock that programs have today; the faster one counts.
const LOCKED: &[&str] = &["parking_lot RwLock<BTreeMap>", "std RwLock<BTreeMap>"];

/// Whose table becomes the plot: a line of it a bar.
const PLOT: Place =
    Place { benchmark: "writer", table: "writer elsewhere, mapped addresses", case: "busy mean" };

/// A case of a table.
#[derive(Clone, Copy)]
struct Place {
    benchmark: &'static str,
    table: &'static str,
    case: &'static str,
}

/// A line of the table: what is done, and what it takes.
struct Opening {
    what: &'static str,
    place: Place,
    /// More is better: a throughput.
    is_rate: bool,
    ours: &'static str,
    theirs: &'static [&'static str],
}

/// A line that compares pervma with the maps under one lock, by the time or the memory that each
/// takes.
const fn beside_locks(
    what: &'static str,
    benchmark: &'static str,
    table: &'static str,
    case: &'static str,
) -> Opening {
    let place = Place { benchmark, table, case };
    Opening { what, place, is_rate: false, ours: "pervma", theirs: LOCKED }
}

const OPENINGS: [Opening; 11] = [
    beside_locks(
        "look an address up, among 1,000 mappings",
        "lookup",
        "VMAs, built by random insertion",
        "1000",
    ),
    beside_locks(
        "the same among 65,000, after other work has had the caches",
        "lookup",
        "VMAs, built by random insertion: after other work",
        "65000",
    ),
    beside_locks(
        "look up while another thread maps and unmaps without a pause: mean",
        PLOT.benchmark,
        PLOT.table,
        PLOT.case,
    ),
    beside_locks("the same: 99.9 % take less than", PLOT.benchmark, PLOT.table, "busy p99.9"),
    Opening {
        is_rate: true,
        ..beside_locks(
            "two threads look up, each in its own part of 1,000",
            "different",
            "threads, different VMAs",
            "2",
        )
    },
    beside_locks(
        "map a page and unmap it, among 1,000 mappings",
        "edits",
        "VMAs, insert + remove",
        "1000",
    ),
    beside_locks(
        "change a page within a mapping, and change it back",
        "edits",
        "VMAs, split + merge",
        "1000",
    ),
    Opening {
        is_rate: true,
        ..beside_locks(
            "two threads map and unmap pages, in one space",
            "contended",
            "insert + remove: pairs",
            "2 edit",
        )
    },
    beside_locks(
        "memory of a mapping with 8 bytes of payload, of 1,000",
        "memory",
        "memory by implementation",
        "a VMA, of 1000",
    ),
    Opening {
        theirs: &["lower bound"],
        ..beside_locks(
            "fill a page of 4 KiB from a file when it is touched",
            "faults",
            "4 KiB a fault, served by a signal handler",
            "file x1",
        )
    },
    Opening {
        theirs: &["criu lazy-pages"],
        ..beside_locks(
            "restore 1 GiB from a page server that is 1 ms away",
            "daemon-criu",
            "page server 1 ms away: until it has all of its memory, from when the restore has returned",
            "1024 MiB",
        )
    },
];

/// Returns the plot and the table, of the benchmarks that are among these.
///
/// # Errors
///
/// Where one of them has not the table, case or line that it is known to have.
pub(crate) fn opening(sections: &[&Section]) -> Result<String, String> {
    let mut text = String::new();
    if let Some(table) = PLOT.table_of(sections)? {
        plot(&mut text, table)?;
    }
    let mut is_first = true;
    for line in &OPENINGS {
        let Some(table) = line.place.table_of(sections)? else { continue };
        if is_first {
            text += "\n| | pervma | what people use today | ratio |\n|---|--:|---|--:|\n";
            is_first = false;
        }
        line.write(&mut text, table)?;
    }
    Ok(text)
}

impl Place {
    /// The table, if the benchmark was run.
    fn table_of<'s>(&self, sections: &[&'s Section]) -> Result<Option<&'s Table>, String> {
        let mut sections = sections.iter();
        let Some(section) = sections.find(|section| section.benchmark == self.benchmark) else {
            return Ok(None);
        };
        // What is absent on this machine has no tables.
        if section.tables.is_empty() {
            return Ok(None);
        }
        let table = section.tables.iter().find(|table| table.title == self.table);
        table.map(Some).ok_or_else(|| format!("{}: no table {:?}", self.benchmark, self.table))
    }

    /// The median of a line in this case.
    fn median(&self, table: &Table, line: &str) -> Result<f64, String> {
        let column = table.cases.iter().position(|case| *case == self.case);
        let line = table.lines.iter().find(|of| of.implementation == line);
        let figure = line.zip(column).and_then(|(line, column)| line.figures[column]);
        let figure = figure.ok_or_else(|| format!("{}: no {:?}", self.benchmark, self.case))?;
        Ok(figure.median)
    }
}

impl Opening {
    fn write(&self, text: &mut String, table: &Table) -> Result<(), String> {
        let ours = self.place.median(table, self.ours)?;
        // How much is taken of theirs: less is better.
        let taken = |theirs: f64| if self.is_rate { theirs / ours } else { ours / theirs };
        let theirs: Result<Vec<_>, String> = self
            .theirs
            .iter()
            .map(|name| self.place.median(table, name).map(|theirs| (*name, theirs)))
            .collect();
        let best = theirs?
            .into_iter()
            .max_by(|(_, one), (_, other)| taken(*one).total_cmp(&taken(*other)));
        let (name, theirs) = best.ok_or("nothing to compare with")?;
        let unit = table.unit.split(',').next().unwrap_or_default();
        let name = name.replace("lower bound", "bare handler");
        let line = format!(
            "| {} | {} | {}: {} | {} |\n",
            self.what,
            of_unit(ours, unit),
            name.replace('<', "\\<"),
            of_unit(theirs, unit),
            number(taken(theirs)),
        );
        *text += &line;
        Ok(())
    }
}

/// A figure with its unit, of which people know what it is.
fn of_unit(figure: f64, unit: &str) -> String {
    match unit.strip_prefix("ns") {
        Some(_) if figure >= 10_000.0 => format!("{} µs", number(figure / 1e3)),
        Some(_) => format!("{} ns", number(figure)),
        None => format!("{} {unit}", number(figure)),
    }
}

/// Draws how often each implementation does in a µs what takes it so many ns.
fn plot(text: &mut String, table: &Table) -> Result<(), String> {
    let (mut names, mut rates) = (Vec::new(), Vec::new());
    for line in &table.lines {
        let name = line.implementation.trim_end_matches(" (memory only)");
        // Mermaid takes what looks like HTML for that.
        names.push(format!("\"{}\"", name.replace('<', "(").replace('>', ")")));
        rates.push(1e3 / PLOT.median(table, &line.implementation)?);
    }
    let most = rates.iter().copied().fold(0.0, f64::max);
    let rates: Vec<_> = rates.into_iter().map(|rate| format!("{rate:.2}")).collect();
    let chart = write!(
        text,
        "```mermaid\n\
         xychart-beta horizontal\n    \
         title \"Lookups in a microsecond, while another thread maps and unmaps\"\n    \
         x-axis [{}]\n    \
         y-axis \"lookups in a microsecond\" 0 --> {:.0}\n    \
         bar [{}]\n\
         ```\n",
        names.join(", "),
        (most / 10.0).ceil() * 10.0,
        rates.join(", "),
    );
    chart.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::Summary;

    fn section(benchmark: &str, tables: Vec<Table>) -> Section {
        Section { benchmark: benchmark.to_owned(), about: String::new(), tables, goals: vec![] }
    }

    fn table(place: Place, unit: &str, figures: [(&'static str, f64); 3]) -> Table {
        let mut table = Table::new(place.table, unit);
        let figures = figures.map(|(name, figure)| (name, Some(Summary::exactly(figure))));
        table.case(place.case, figures);
        table
    }

    #[test]
    fn it_compares_with_the_better_one() {
        let of = |figures| [("pervma", 0.0), (LOCKED[0], 0.0), (LOCKED[1], 0.0)].map(figures);
        let figures = [20.0, 16_000.0, 100.0];
        let mut number = 0..3;
        let times = of(|(name, _)| (name, figures[number.next().unwrap()]));
        let mut writer = table(PLOT, "ns a lookup", times);
        writer.case(
            "busy p99.9",
            times.map(|(name, time)| (name, Some(Summary::exactly(2.0 * time)))),
        );
        let rates = [("pervma", 100.0), (LOCKED[0], 80.0), (LOCKED[1], 50.0)];
        let different = table(OPENINGS[4].place, "lookups per µs, together", rates);
        let (writer, different) =
            (section("writer", vec![writer]), section("different", vec![different]));
        let text = opening(&[&writer, &different]).unwrap();
        for part in [
            "x-axis [\"pervma\", \"parking_lot RwLock(BTreeMap)\", \"std RwLock(BTreeMap)\"]",
            "0 --> 50\n    bar [50.00, 0.06, 10.00]\n```\n\n| | pervma | what people use today | ratio |\n",
            " mean | 20.0 ns | std RwLock\\<BTreeMap>: 100 ns | 0.200 |\n",
            " | 100 lookups per µs | parking_lot RwLock\\<BTreeMap>: 80.0 lookups per µs | 0.800 |\n",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert!(opening(&[&section("lookup", vec![])]).unwrap().is_empty());
        assert!(opening(&[&section("lookup", vec![Table::new("other", "ns")])]).is_err());
    }

    #[test]
    fn large_times_are_readable() {
        assert_eq!(of_unit(9_999.0, "ns a pair"), "9999 ns");
        assert_eq!(of_unit(272_647.0, "ns a pair"), "273 µs");
        assert_eq!(of_unit(40.2, "bytes"), "40.2 bytes");
    }
}
