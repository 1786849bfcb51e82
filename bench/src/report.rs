//! The figures, as text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::comparison::{Bound, Effort, Goal, Outcome};
use crate::machine::Machine;
use crate::summary::Summary;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    #[serde(flatten)]
    pub(crate) effort: Effort,
    /// ns.
    pub(crate) timer_cost: Option<Summary>,
    pub(crate) benchmarks: Vec<Section>,
}

/// What a benchmark has measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Section {
    pub(crate) benchmark: String,
    /// What was done.
    pub(crate) about: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) goals: Vec<Goal>,
}

/// What a benchmark returns: what was done, the tables, and the goals.
pub(crate) type Figures = (&'static str, Vec<Table>, Vec<Goal>);

/// Figures of one kind: a line for each implementation, a column for each case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) cases: Vec<String>,
    /// The cases as numbers, where they are points of a curve.
    pub(crate) scale: Option<Vec<f64>>,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) implementation: String,
    /// One for each case; `None` where the implementation has none.
    pub(crate) figures: Vec<Option<Summary>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, unit: &str) -> Self {
        Self {
            title: title.into(),
            unit: unit.to_owned(),
            cases: Vec::new(),
            scale: None,
            lines: Vec::new(),
        }
    }

    /// Adds a column.
    pub(crate) fn case(
        &mut self,
        case: impl Into<String>,
        figures: impl IntoIterator<Item = (impl Into<String>, Option<Summary>)>,
    ) {
        let column = self.cases.len();
        self.cases.push(case.into());
        for (implementation, figure) in figures {
            let implementation = implementation.into();
            let line =
                match self.lines.iter_mut().find(|line| line.implementation == implementation) {
                    Some(line) => line,
                    None => {
                        self.lines.push(Line { implementation, figures: Vec::new() });
                        let last = self.lines.len() - 1;
                        &mut self.lines[last]
                    }
                };
            line.figures.resize(column, None);
            line.figures.push(figure);
        }
        self.lines.iter_mut().for_each(|line| line.figures.resize(column + 1, None));
    }

    /// Adds a column that is a point of curves.
    pub(crate) fn point(
        &mut self,
        at: usize,
        figures: impl IntoIterator<Item = (impl Into<String>, Option<Summary>)>,
    ) {
        self.scale.get_or_insert_default().push(at as f64);
        self.case(at.to_string(), figures);
    }
}

/// A measure of all implementations.
pub(crate) fn all(
    outcome: &Outcome,
    measure: usize,
) -> impl Iterator<Item = (&'static str, Option<Summary>)> {
    outcome.names().map(move |name| (name, outcome.summary(name, measure)))
}

/// A measure of all implementations over one implementation's.
pub(crate) fn over(
    outcome: &Outcome,
    measure: usize,
    reference: &'static str,
) -> impl Iterator<Item = (&'static str, Option<Summary>)> {
    outcome
        .names()
        .filter(move |name| *name != reference)
        .map(move |name| (name, outcome.ratio((name, measure), (reference, measure))))
}

/// One measure over another, of all implementations.
pub(crate) fn growth(
    outcome: &Outcome,
    of: usize,
    to: usize,
) -> impl Iterator<Item = (&'static str, Option<Summary>)> {
    outcome.names().map(move |name| (name, outcome.ratio((name, of), (name, to))))
}

/// What all other implementations gain from one measure to another, over what the floor gains.
pub(crate) fn gains(
    outcome: &Outcome,
    measures: (usize, usize),
    floor: &'static str,
) -> impl Iterator<Item = (&'static str, Option<Summary>)> {
    outcome
        .names()
        .filter(move |name| *name != floor)
        .map(move |name| (name, outcome.gain_over(name, floor, measures)))
}

impl Report {
    /// What it was measured on and how, line by line.
    pub(crate) fn preamble(&self) -> String {
        let mut text = format!(
            "{}\nMedians (quartiles) of {} rounds in which the implementations take turns; ratios are \
             computed round by round.\n\"Memory only\": keeps an entry's memory while it is read, not \
             the entry in the map; its removal does not wait.\n",
            self.machine, self.effort.rounds
        );
        if let Some(cost) = &self.timer_cost {
            text += "Reading the clock twice adds ";
            text += &cell(cost);
            text += " ns to an operation timed by itself.\n";
        }
        text
    }

    /// Returns each goal, with the name of its benchmark.
    pub(crate) fn goals(&self) -> impl Iterator<Item = (&str, &Goal)> {
        self.benchmarks
            .iter()
            .flat_map(|section| section.goals.iter().map(|goal| (section.benchmark.as_str(), goal)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.preamble())?;
        self.benchmarks.iter().try_for_each(|section| write!(f, "\n{section}"))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {}\n{}", self.benchmark, self.about)?;
        for table in &self.tables {
            write!(f, "\n{table}")?;
        }
        if !self.goals.is_empty() {
            writeln!(f, "\ngoals")?;
        }
        self.goals.iter().try_for_each(|goal| write!(f, "{goal}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}", self.title, self.unit)?;
        let cells = |line: &Line| -> Vec<String> {
            line.figures.iter().map(|figure| figure.as_ref().map_or("-".into(), cell)).collect()
        };
        let lines: Vec<_> =
            self.lines.iter().map(|line| (&line.implementation, cells(line))).collect();
        let width = |column: usize| {
            let cells = lines.iter().map(|(_, cells)| cells[column].chars().count());
            cells.chain([self.cases[column].chars().count()]).max().unwrap_or(0) + 2
        };
        let widths: Vec<_> = (0..self.cases.len()).map(width).collect();
        let names = self.lines.iter().map(|line| line.implementation.len()).max().unwrap_or(0);
        let mut line = |name: &str, cells: &[String]| {
            write!(f, "  {name:names$}")?;
            for (cell, width) in cells.iter().zip(&widths) {
                write!(f, "{cell:>width$}")?;
            }
            writeln!(f)
        };
        line("", &self.cases)?;
        lines.iter().try_for_each(|(name, cells)| line(name, cells))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
        }
    }
}

impl Goal {
    /// Whether it holds, or else by how much it is missed.
    pub(crate) fn verdict(&self) -> String {
        match self.bound.missed_by(self.figure.median) {
            _ if self.holds => "holds".to_owned(),
            missed if self.bound == Bound::AtMost(0.0) => format!("misses by {}", number(missed)),
            missed @ 10.0.. => format!("misses by a factor of {}", number(missed + 1.0)),
            missed => format!("misses by {:.0} %", (missed * 100.0).ceil()),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, bound, figure, .. } = self;
        writeln!(f, "  {:15} {bound}: {}  {what}", self.verdict(), cell(figure))
    }
}

pub(crate) fn cell(summary: &Summary) -> String {
    let Summary { median, lower_quartile, upper_quartile } = *summary;
    if lower_quartile == upper_quartile {
        return number(median);
    }
    format!("{} ({}..{})", number(median), number(lower_quartile), number(upper_quartile))
}

/// With about three digits that count.
pub(crate) fn number(figure: f64) -> String {
    let digits = match figure.abs() {
        0.0 => 0,
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{figure:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_implementation_may_miss_a_case() {
        let mut table = Table::new("title", "ns");
        table.case("a", [("x", Some(Summary::exactly(1.0)))]);
        table.case("b", [("y", Some(Summary::exactly(250.0)))]);
        assert_eq!(
            table.to_string(),
            "title, ns\n        a    b\n  x  1.00    -\n  y     -  250\n"
        );
    }

    #[test]
    fn goals_say_by_how_much() {
        let goal = |bound, figure| {
            Goal::new("w", bound, Summary::exactly(figure)).to_string().trim().to_owned()
        };
        assert_eq!(goal(Bound::AtMost(0.5), 0.4), "holds           ≤ 0.5: 0.400  w");
        assert_eq!(goal(Bound::AtLeast(2.0), 1.0), "misses by 50 %  ≥ 2: 1.00  w");
        assert_eq!(goal(Bound::AtMost(2.0), 30.0), "misses by a factor of 15.0 ≤ 2: 30.0  w");
        assert_eq!(goal(Bound::AtMost(0.0), 12.0), "misses by 12.0  ≤ 0: 12.0  w");
    }
}
