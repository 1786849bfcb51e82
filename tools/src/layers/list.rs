//! The layers that ARCHITECTURE.md states: fenced blocks that begin with "layers" and a package's
//! name.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// The order that a block states, lowest layer first.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) lines: Vec<Line>,
}

/// A layer.
#[derive(Debug)]
pub(crate) struct Line {
    /// Files, or folders of files that have no line of their own.
    pub(crate) names: Vec<String>,
    /// Names that know each other, as the line says by `<->`; a folder whose files know each other
    /// stands on both sides.
    pub(crate) circles: Vec<Vec<String>>,
}

/// What a package depends on within the workspace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrows {
    pub(crate) to: Vec<String>,
    pub(crate) in_tests: Vec<String>,
}

/// All blocks of the page.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) orders: BTreeMap<String, Order>,
    /// Packages in their order, with what each depends on.
    pub(crate) packages: Vec<(String, Arrows)>,
}

impl Claims {
    pub(crate) fn read(page: &str) -> Result<Self> {
        let mut claims = Self::default();
        let mut lines = page.lines();
        while let Some(line) = lines.next() {
            let Some(package) = line.strip_prefix("```layers ") else { continue };
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            // A name, or several, then two spaces, then what they are for.
            let block = block.into_iter().map(|line| line.split("  ").next().unwrap_or_default());
            if package == "packages" {
                claims.packages =
                    block.map(arrows).collect::<Result<_>>().context("layers packages")?;
            } else {
                let lines = block.map(names).collect();
                claims.orders.insert(package.to_owned(), Order { lines });
            }
        }
        if claims.orders.is_empty() || claims.packages.is_empty() {
            bail!("no layers are claimed");
        }
        Ok(claims)
    }
}

/// `a, b <-> c`
fn names(line: &str) -> Line {
    let groups = line.split(", ");
    let groups: Vec<Vec<String>> =
        groups.map(|group| group.split(" <-> ").map(str::to_owned).collect()).collect();
    let names = groups.iter().flat_map(|group| {
        let mut group = group.clone();
        group.dedup();
        group
    });
    Line {
        names: names.collect(),
        circles: groups.into_iter().filter(|group| group.len() > 1).collect(),
    }
}

/// `a -> b, (c)`: `a` uses `b`, and in its tests `c`.
fn arrows(line: &str) -> Result<(String, Arrows)> {
    let (from, to) = line.split_once(" -> ").unwrap_or((line, ""));
    if from.contains(' ') {
        bail!("{line:?} is no package with arrows");
    }
    let mut arrows = Arrows::default();
    for to in to.split(", ").filter(|to| !to.is_empty()) {
        match to.strip_prefix('(').and_then(|to| to.strip_suffix(')')) {
            Some(to) => arrows.in_tests.push(to.to_owned()),
            None => arrows.to.push(to.to_owned()),
        }
    }
    Ok((from.to_owned(), arrows))
}

impl std::fmt::Display for Arrows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let in_tests = self.in_tests.iter().map(|to| format!("({to})"));
        let to: Vec<String> = self.to.iter().cloned().chain(in_tests).collect();
        if to.is_empty() { write!(f, "no arrow") } else { write!(f, "-> {}", to.join(", ")) }
    }
}
