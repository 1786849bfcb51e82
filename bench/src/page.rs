//! docs/benchmarks.md: the figures of saved runs, and the explanations of bench/explanations.md.

use std::error::Error;
use std::fmt::{self, Write};

use crate::comparison::{Bound, Effort, Goal};
use crate::opening::opening;
use crate::report::{Report, Section, Table, cell};

/// The explanations, each below a heading.
pub(crate) const EXPLANATIONS: &str = include_str!("../explanations.md");

const REJECTED: &str = "Tried and rejected";

const TOP: &str = "\
# Benchmarks

pervma beside what people use instead, and beside lower bounds.
";

const BELOW_OPENING: &str = "
A ratio below 1 says that pervma takes less time or memory, or does more in the same time. Maps are `BTreeMap`s under the
`RwLock` of parking_lot or of the standard library, whichever is ahead in a line. In the plot, `ArcSwap`, `SkipMap` and
`TreeIndex` do less than the others: a removal there does not wait for those that still read what it removes.

The figures are of the last of the runs that this page is made of, the goals are judged in each. The explanations
are those of [bench/explanations.md](../bench/explanations.md); the rest is printed:

```sh
cargo build --release -p pervma-capi -p pervma-bench
for run in 1 2 3; do target/release/pervma-bench --json > run$run.json; done
target/release/pervma-bench page run1.json run2.json run3.json > docs/benchmarks.md
```

Runs of some benchmarks (`--only`) may be given together, too, in place of whole ones or after them; those of other machines
before them. With `--plot DIR` a run draws its tables.
";

/// A part of the page, with the benchmarks that it is about.
struct Part {
    title: &'static str,
    has: fn(&str) -> bool,
}

const DAEMON: &str = "daemon-";

const C: &str = "c";

const PARTS: [Part; 3] = [
    Part { title: "The library", has: |name| !name.starts_with(DAEMON) && name != C },
    Part { title: "The daemon", has: |name| name.starts_with(DAEMON) },
    Part { title: "The interface for C", has: |name| name == C },
];

/// Returns the page. A benchmark is judged by its runs on the machine of the last of them.
///
/// # Errors
///
/// Where runs cannot be compared, where a goal is missed without an explanation, and where one is
/// explained that is none.
pub(crate) fn page<'r>(
    runs: &'r [Report],
    explanations: &'r str,
) -> Result<String, Box<dyn Error>> {
    let benchmarks = by_benchmark(runs);
    if benchmarks.is_empty() {
        return Err("a page is made of runs".into());
    }
    if let Some(of) = benchmarks.iter().find(|of| !of.are_comparable()) {
        let name = &of.last.1.benchmark;
        return Err(format!("{name}: the runs differ in versions, rounds or goals").into());
    }
    let judged: Vec<_> = benchmarks.iter().map(|of| (of, of.judge(explanations))).collect();
    let goals = || judged.iter().flat_map(|(_, goals)| goals);
    let rejected = below(explanations, REJECTED);

    let wordless = goals().filter(|goal| !goal.holds() && goal.words.is_empty());
    let mut wordless: Vec<_> = wordless.map(|goal| goal.heading.as_str()).collect();
    wordless.extend(rejected.is_empty().then_some(REJECTED));
    if !wordless.is_empty() {
        let wordless = wordless.join("\n## ");
        return Err(format!("bench/explanations.md explains nothing below\n## {wordless}").into());
    }
    let unknown: Vec<_> = benchmarks
        .iter()
        .zip(&judged)
        .flat_map(|(of, (_, goals))| of.unknown(explanations, goals))
        .collect();
    if !unknown.is_empty() {
        let unknown = unknown.join("\n## ");
        return Err(format!("bench/explanations.md explains what is no goal:\n## {unknown}").into());
    }

    let last: Vec<_> = benchmarks.iter().map(|of| of.last.1).collect();
    let mut page = format!("{TOP}\n{}{BELOW_OPENING}", opening(&last)?);
    write_how(&mut page, &benchmarks)?;
    for Part { title, has } in PARTS {
        let of_part: Vec<_> = judged.iter().filter(|(of, _)| has(&of.last.1.benchmark)).collect();
        if of_part.is_empty() {
            continue;
        }
        let goals: Vec<_> = of_part.iter().flat_map(|(_, goals)| goals).collect();
        writeln!(page, "\n## {title}")?;
        write_goals(&mut page, &goals)?;
        write_missed(&mut page, &goals)?;
        of_part.iter().try_for_each(|(of, _)| of.write(&mut page))?;
    }
    writeln!(page, "\n## {REJECTED}\n\n{rejected}")?;
    Ok(page)
}

/// A benchmark, in each of its runs.
struct Runs<'r> {
    /// On other machines than the last.
    elsewhere: Vec<(&'r Report, &'r Section)>,
    /// On the machine of the last, and that.
    here: Vec<(&'r Report, &'r Section)>,
    last: (&'r Report, &'r Section),
}

/// The benchmarks, in the order in which they first appear, but those of whole runs before others.
fn by_benchmark(runs: &[Report]) -> Vec<Runs<'_>> {
    let mut order: Vec<&Report> = runs.iter().collect();
    order.sort_by_key(|run| std::cmp::Reverse(run.benchmarks.len()));
    let mut names: Vec<&str> = Vec::new();
    for section in order.iter().flat_map(|run| &run.benchmarks) {
        if !names.contains(&section.benchmark.as_str()) {
            names.push(&section.benchmark);
        }
    }
    let of_name = |name: &str| {
        let sections = runs.iter().filter_map(|run| {
            Some((run, run.benchmarks.iter().find(|section| section.benchmark == name)?))
        });
        let mut all: Vec<_> = sections.collect();
        // What is absent on one machine may be there on another.
        if all.iter().any(|(_, section)| !section.tables.is_empty()) {
            all.retain(|(_, section)| !section.tables.is_empty());
        }
        let last = *all.last()?;
        let (here, elsewhere) = all.into_iter().partition(|(run, _)| run.machine == last.0.machine);
        Some(Runs { elsewhere, here, last })
    };
    names.into_iter().filter_map(of_name).collect()
}

impl<'r> Runs<'r> {
    fn are_comparable(&self) -> bool {
        fn bounds(section: &Section) -> impl Iterator<Item = (&str, Bound)> {
            section.goals.iter().map(|goal| (goal.what.as_str(), goal.bound))
        }
        let (report, section) = self.last;
        let mut here = self.here.iter();
        here.all(|(run, of)| run.effort == report.effort && bounds(of).eq(bounds(section)))
    }

    /// Its goals, each in all runs here.
    fn judge(&self, explanations: &'r str) -> Vec<Judged<'r>> {
        let (_, section) = self.last;
        let judge = |(number, goal): (usize, &Goal)| {
            let heading = markdown(&format!("{}: {}", section.benchmark, goal.what));
            Judged {
                words: below(explanations, &heading),
                heading,
                runs: self.here.iter().filter_map(|(_, of)| of.goals.get(number)).collect(),
            }
        };
        section.goals.iter().enumerate().map(judge).collect()
    }

    /// The headings of explanations that name no goal of this benchmark, if it was run in full.
    fn unknown<'t>(&self, explanations: &'t str, goals: &[Judged<'_>]) -> Vec<&'t str> {
        let (report, section) = self.last;
        if report.effort != Effort::FULL || goals.is_empty() {
            return Vec::new();
        }
        let prefix = format!("{}: ", section.benchmark);
        let headings = sections(explanations).map(|(heading, _)| heading);
        let of_this = headings.filter(|heading| heading.starts_with(&prefix));
        of_this.filter(|heading| goals.iter().all(|goal| goal.heading != *heading)).collect()
    }

    fn write(&self, page: &mut String) -> fmt::Result {
        let (report, section) = self.last;
        writeln!(page, "\n### {}\n\n{}", section.benchmark, markdown(&section.about))?;
        section.tables.iter().try_for_each(|table| write_table(page, table))?;
        if self.elsewhere.is_empty() {
            return Ok(());
        }
        let mut table = Table::new("goals on this machine, and the last run of others", "");
        let mut machine = |report: &Report, of: &Section| {
            let figure = |goal: &Goal| {
                let found = of.goals.iter().find(|other| other.what == goal.what);
                (goal.what.clone(), found.map(|found| found.figure))
            };
            let figures: Vec<_> = section.goals.iter().map(figure).collect();
            table.case(report.machine.name(), figures);
        };
        machine(report, section);
        for (number, (report, of)) in self.elsewhere.iter().enumerate() {
            let is_last = self.elsewhere[number + 1..]
                .iter()
                .all(|(later, _)| later.machine != report.machine);
            if is_last {
                machine(report, of);
            }
        }
        write_table(page, &table)
    }
}

/// A goal in each run, and its explanation.
struct Judged<'r> {
    heading: String,
    words: &'r str,
    runs: Vec<&'r Goal>,
}

impl Judged<'_> {
    fn holds(&self) -> bool {
        self.runs.iter().all(|goal| goal.holds)
    }
}

/// The headings of the second level, each with what is below it.
fn sections(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let sections = text.split("\n## ").skip(1);
    sections.map(|section| section.split_once('\n').unwrap_or((section, "")))
}

/// Returns what is below a heading of the second level. Headings that follow each other share it.
fn below<'t>(text: &'t str, heading: &str) -> &'t str {
    let from_there = sections(text).skip_while(|(title, _)| *title != heading);
    from_there.map(|(_, words)| words.trim()).find(|words| !words.is_empty()).unwrap_or_default()
}

/// What was measured on which machine, and how.
fn write_how(page: &mut String, benchmarks: &[Runs<'_>]) -> fmt::Result {
    writeln!(page, "\n## How it is measured")?;
    let mut written: Vec<&Report> = Vec::new();
    let is_as =
        |one: &Report, other: &Report| one.machine == other.machine && one.effort == other.effort;
    for of in benchmarks {
        let report = of.last.0;
        if written.iter().any(|other| is_as(report, other)) {
            continue;
        }
        written.push(report);
        let same = benchmarks.iter().filter(|of| is_as(of.last.0, report));
        let names: Vec<_> = same.map(|of| of.last.1.benchmark.as_str()).collect();
        if names.len() < benchmarks.len() {
            writeln!(page, "\n{}:", names.join(", "))?;
        }
        writeln!(page)?;
        for line in report.preamble().lines() {
            writeln!(page, "- {}", markdown(line))?;
        }
    }
    Ok(())
}

fn write_goals(page: &mut String, goals: &[&Judged<'_>]) -> fmt::Result {
    let held = goals.iter().filter(|goal| goal.holds()).count();
    writeln!(
        page,
        "\n### Goals\n\nOf {} goals, {held} hold in each run. A miss is bold.\n",
        goals.len()
    )?;
    let runs = goals.iter().map(|goal| goal.runs.len()).max().unwrap_or(0);
    let columns: String = (1..=runs).map(|run| format!(" run {run} |")).collect();
    writeln!(page, "| goal | bound |{columns}\n|---|---|{}", "---|".repeat(runs))?;
    for Judged { heading, runs: of_runs, .. } in goals {
        write!(page, "| {heading} | {} |", of_runs[0].bound)?;
        for goal in of_runs {
            let figure = cell(&goal.figure);
            if goal.holds {
                write!(page, " {figure} |")?;
            } else {
                write!(page, " **{figure} {}** |", goal.verdict())?;
            }
        }
        writeln!(page, "{}", " |".repeat(runs - of_runs.len()))?;
    }
    Ok(())
}

/// The goals that are missed: those with the same explanation together, where the first of them
/// stands.
fn write_missed(page: &mut String, goals: &[&Judged<'_>]) -> fmt::Result {
    let missed: Vec<_> = goals.iter().filter(|goal| !goal.holds()).collect();
    if !missed.is_empty() {
        writeln!(page, "\n### Goals that are missed\n\nWith a verdict for each run.")?;
    }
    let mut written: Vec<&str> = Vec::new();
    for first in &missed {
        if written.contains(&first.words) {
            continue;
        }
        written.push(first.words);
        writeln!(page)?;
        for goal in missed.iter().filter(|goal| goal.words == first.words) {
            let verdicts: Vec<_> = goal.runs.iter().map(|goal| goal.verdict()).collect();
            writeln!(page, "- {}: {}", goal.heading, verdicts.join(", "))?;
        }
        writeln!(page, "\n{}", first.words)?;
    }
    Ok(())
}

fn write_table(page: &mut String, table: &Table) -> fmt::Result {
    write!(page, "\n**{}**", markdown(&table.title))?;
    if !table.unit.is_empty() {
        write!(page, ", {}", table.unit)?;
    }
    writeln!(page, "\n")?;
    writeln!(page, "| | {} |\n|---|{}", table.cases.join(" | "), "--:|".repeat(table.cases.len()))?;
    for line in &table.lines {
        write!(page, "| {} |", markdown(&line.implementation))?;
        for figure in &line.figures {
            write!(page, " {} |", figure.as_ref().map_or("-".to_owned(), cell))?;
        }
        writeln!(page)?;
    }
    Ok(())
}

/// A name with `<` would be taken for HTML.
fn markdown(text: &str) -> String {
    text.replace('<', "\\<")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::summary::Summary;

    const HEADING: &str = "end: pervma over Lock\\<Map>";

    const WORDS: &str = "about\n\n## Tried and rejected\n\n- trees of paper\n\n\
                         ## end: pervma over Lock\\<Map>\n\nThe moon was full.\n";

    /// A run with one benchmark, which has this figure and is to have at most 0.5.
    fn run(figure: f64) -> Report {
        let mut table = Table::new("VMAs", "ratio");
        table.point(16, [("Lock<Map> (memory only)", None), ("pervma", Summary::of([1.0, 2.0]))]);
        let what = "pervma over Lock<Map>";
        let goal = Goal::new(what, Bound::AtMost(0.5), Summary::exactly(figure));
        Report {
            machine: Machine::detect(),
            effort: Effort::QUICK,
            timer_cost: Some(Summary::exactly(20.0)),
            benchmarks: vec![Section {
                benchmark: "end".to_owned(),
                about: "Looks things up.".to_owned(),
                tables: vec![table],
                goals: vec![goal],
            }],
        }
    }

    #[test]
    fn what_holds_needs_no_words() {
        let page = page(&[run(0.4), run(0.5)], WORDS).unwrap();
        for part in [
            "Of 1 goals, 1 hold",
            "| goal | bound | run 1 | run 2 |\n",
            "| end: pervma over Lock\\<Map> | ≤ 0.5 | 0.400 | 0.500 |\n",
            "- Reading the clock twice adds 20.0 ns",
            "\n**VMAs**, ratio\n\n| | 16 |\n|---|--:|\n| Lock\\<Map> (memory only) | - |\n| pervma | 1.00",
            "## Tried and rejected\n\n- trees of paper\n",
        ] {
            assert!(page.contains(part), "{part}\n\n{page}");
        }
        assert!(!["misses", "missed", "moon"].iter().any(|word| page.contains(word)), "{page}");
    }

    #[test]
    fn what_is_missed_once_is_explained() {
        let page = page(&[run(0.4), run(0.6), run(0.5)], WORDS).unwrap();
        for part in [
            "Of 1 goals, 0 hold",
            "| 0.400 | **0.600 misses by 20 %** | 0.500 |",
            "- end: pervma over Lock\\<Map>: holds, misses by 20 %, holds\n\nThe moon was full.\n",
        ] {
            assert!(page.contains(part), "{part}\n\n{page}");
        }
    }

    #[test]
    fn a_page_without_its_words_is_refused() {
        let refusal = |words: &str| page(&[run(0.4), run(0.6)], words).unwrap_err().to_string();
        assert!(refusal(&WORDS.replace("Lock", "Bolt")).ends_with(HEADING));
        assert!(refusal(&WORDS.replace("The moon was full.", "")).ends_with(HEADING));
        assert!(refusal(&WORDS.replace("rejected", "kept")).ends_with(REJECTED));
        assert!(!below(EXPLANATIONS, REJECTED).is_empty());
    }

    #[test]
    fn words_for_what_is_no_goal_are_refused() {
        let mut full = run(0.4);
        full.effort = Effort::FULL;
        let more = |heading: &str| format!("{WORDS}\n## {heading}\n\nOf old.\n");
        assert!(page(&[full], &more("cursor: 1")).is_ok(), "which was not run");
        let mut full = run(0.4);
        full.effort = Effort::FULL;
        let refusal = page(&[full], &more("end: 1")).unwrap_err().to_string();
        assert!(refusal.ends_with("is no goal:\n## end: 1"), "{refusal}");
    }

    #[test]
    fn runs_of_some_benchmarks_make_a_page_together() {
        let named = |name: &str, figure| {
            let mut run = run(figure);
            run.benchmarks[0].benchmark = name.to_owned();
            run
        };
        let mut elsewhere = run(0.1);
        elsewhere.machine.rename("Elbrus");
        let runs = [elsewhere, run(0.4), named("daemon-x", 0.2), run(0.3)];
        let page = page(&runs, WORDS).unwrap();
        for part in [
            "## The library\n\n### Goals\n\nOf 1 goals, 1 hold",
            "| end: pervma over Lock\\<Map> | ≤ 0.5 | 0.400 | 0.300 |\n",
            "## The daemon\n\n### Goals\n\nOf 1 goals, 1 hold",
            "| daemon-x: pervma over Lock\\<Map> | ≤ 0.5 | 0.200 |\n",
            "| pervma over Lock\\<Map> | 0.300 | 0.100 |\n",
            " | Elbrus, ",
        ] {
            assert!(page.contains(part), "{part}\n\n{page}");
        }
    }

    #[test]
    fn headings_that_follow_each_other_share_their_words() {
        let text = "\n## a\n## b\n\none\n## c\ntwo\n## d\n";
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|heading| below(text, heading)),
            ["one", "one", "two", "", ""]
        );
    }

    #[test]
    fn runs_that_differ_are_refused() {
        let mut longer = run(0.4);
        longer.effort = Effort::FULL;
        assert!(page(&[longer, run(0.4)], WORDS).is_err());
        let mut stricter = run(0.4);
        stricter.benchmarks[0].goals[0].bound = Bound::AtMost(0.45);
        assert!(page(&[run(0.4), stricter], WORDS).is_err());
        assert!(page(&[], WORDS).is_err());
    }

    #[test]
    fn a_run_that_was_saved_is_the_same() {
        let text = serde_json::to_string(&run(0.6)).unwrap();
        let saved = serde_json::from_str(&text).unwrap();
        assert_eq!(page(&[saved], WORDS).unwrap(), page(&[run(0.6)], WORDS).unwrap());
    }
}
