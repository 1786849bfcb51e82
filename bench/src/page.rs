//! docs/benchmarks.md: the figures of saved runs, and the explanations of bench/explanations.md.

use std::error::Error;
use std::fmt::{self, Write};

use crate::comparison::{Bound, Goal};
use crate::report::{Report, Section, Table, cell};

/// The explanations, each below a heading.
pub(crate) const EXPLANATIONS: &str = include_str!("../explanations.md");

const REJECTED: &str = "Tried and rejected";

const TOP: &str = "\
# Benchmarks

pervma beside what people use instead, and beside lower bounds. The figures are of the last of the runs that
this page is made of, the goals are judged in each. The explanations are
those of [bench/explanations.md](../bench/explanations.md); the rest is printed:

```sh
cargo build --release -p pervma-bench
target/release/pervma-bench --json > run1.json
target/release/pervma-bench --json > run2.json
target/release/pervma-bench --json --plot plots > run3.json  # with curves and bars, an SVG for each benchmark
target/release/pervma-bench page run1.json run2.json run3.json > docs/benchmarks.md
```
";

/// Returns the page.
///
/// # Errors
///
/// Where runs cannot be compared, and where a goal is missed without an explanation.
pub(crate) fn page<'r>(
    runs: &'r [Report],
    explanations: &'r str,
) -> Result<String, Box<dyn Error>> {
    let last = runs.last().ok_or("a page is made of runs")?;
    if runs.iter().any(|run| !comparable(run, last)) {
        return Err("the runs differ in machine, versions, rounds or goals".into());
    }
    let goals: Vec<_> = last
        .goals()
        .enumerate()
        .map(|(number, (benchmark, goal))| {
            let heading = markdown(&format!("{benchmark}: {}", goal.what));
            let of_run = |run: &'r Report| run.goals().nth(number).map(|(_, goal)| goal);
            Judged {
                words: below(explanations, &heading),
                heading,
                runs: runs.iter().filter_map(of_run).collect(),
            }
        })
        .collect();
    let missed: Vec<_> = goals.iter().filter(|goal| !goal.holds()).collect();
    let rejected = below(explanations, REJECTED);

    let wordless = missed.iter().filter(|goal| goal.words.is_empty());
    let mut wordless: Vec<_> = wordless.map(|goal| goal.heading.as_str()).collect();
    wordless.extend(rejected.is_empty().then_some(REJECTED));
    if !wordless.is_empty() {
        let wordless = wordless.join("\n## ");
        return Err(format!("bench/explanations.md explains nothing below\n## {wordless}").into());
    }

    let mut page = format!("{TOP}\n## How it is measured\n\n");
    for line in last.preamble().lines() {
        writeln!(page, "- {}", markdown(line))?;
    }
    write_goals(&mut page, &goals, runs.len())?;
    if !missed.is_empty() {
        writeln!(page, "\n## Goals that are missed\n\nWith a verdict for each run.")?;
    }
    for of_one_cause in missed.chunk_by(|one, next| one.words == next.words) {
        write_missed(&mut page, of_one_cause)?;
    }
    last.benchmarks.iter().try_for_each(|section| write_section(&mut page, section))?;
    writeln!(page, "\n## {REJECTED}\n\n{rejected}")?;
    Ok(page)
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

fn comparable(run: &Report, other: &Report) -> bool {
    fn bounds(run: &Report) -> impl Iterator<Item = (&str, &str, Bound)> {
        run.goals().map(|(benchmark, goal)| (benchmark, goal.what.as_str(), goal.bound))
    }
    run.machine == other.machine && run.effort == other.effort && bounds(run).eq(bounds(other))
}

/// Returns what is below a heading of the second level. Headings that follow each other share it.
fn below<'t>(text: &'t str, heading: &str) -> &'t str {
    let sections = text.split("\n## ").skip(1);
    let sections = sections.map(|section| section.split_once('\n').unwrap_or((section, "")));
    let from_there = sections.skip_while(|(title, _)| *title != heading);
    from_there.map(|(_, words)| words.trim()).find(|words| !words.is_empty()).unwrap_or_default()
}

fn write_goals(page: &mut String, goals: &[Judged<'_>], runs: usize) -> fmt::Result {
    let held = goals.iter().filter(|goal| goal.holds()).count();
    writeln!(
        page,
        "\n## Goals\n\nOf {} goals, {held} hold in each run. A miss is bold.\n",
        goals.len()
    )?;
    let columns: String = (1..=runs).map(|run| format!(" run {run} |")).collect();
    writeln!(page, "| goal | bound |{columns}\n|---|---|{}", "---|".repeat(runs))?;
    for Judged { heading, runs, .. } in goals {
        write!(page, "| {heading} | {} |", runs[0].bound)?;
        for goal in runs {
            let figure = cell(&goal.figure);
            if goal.holds {
                write!(page, " {figure} |")?;
            } else {
                write!(page, " **{figure} {}** |", goal.verdict())?;
            }
        }
        writeln!(page)?;
    }
    Ok(())
}

fn write_missed(page: &mut String, of_one_cause: &[&Judged<'_>]) -> fmt::Result {
    writeln!(page)?;
    for goal in of_one_cause {
        let verdicts: Vec<_> = goal.runs.iter().map(|goal| goal.verdict()).collect();
        writeln!(page, "- {}: {}", goal.heading, verdicts.join(", "))?;
    }
    writeln!(page, "\n{}", of_one_cause[0].words)
}

fn write_section(page: &mut String, section: &Section) -> fmt::Result {
    writeln!(page, "\n## {}\n\n{}", section.benchmark, markdown(&section.about))?;
    section.tables.iter().try_for_each(|table| write_table(page, table))
}

fn write_table(page: &mut String, table: &Table) -> fmt::Result {
    writeln!(page, "\n**{}**, {}\n", markdown(&table.title), table.unit)?;
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
    use crate::comparison::Effort;
    use crate::machine::Machine;
    use crate::summary::Summary;

    const HEADING: &str = "lookup: pervma over Lock\\<Map>";

    const WORDS: &str = "about\n\n## Tried and rejected\n\n- trees of paper\n\n\
                         ## lookup: pervma over Lock\\<Map>\n\nThe moon was full.\n";

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
                benchmark: "lookup".to_owned(),
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
            "| lookup: pervma over Lock\\<Map> | ≤ 0.5 | 0.400 | 0.500 |\n",
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
            "- lookup: pervma over Lock\\<Map>: holds, misses by 20 %, holds\n\nThe moon was full.\n",
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
