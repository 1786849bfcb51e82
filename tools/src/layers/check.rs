//! Violations of a crate's layers.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::list::Order;
use super::names::Uses;
use super::source::Crate;

/// All that is wrong, a line each. Paths are shown as from `workspace`.
pub(crate) fn check(order: &Order, sources: &[Crate], package: &Path) -> Vec<String> {
    let mut wrong = names_once(order);
    let mut named = BTreeSet::new();
    for source in sources {
        let layers = Layers::new(order, source, package);
        named.extend(layers.names.iter().flatten().cloned());
        wrong.extend(layers.unnamed());
        wrong.extend(layers.upward());
        wrong.extend(layers.circles());
        wrong.extend(layers.torn_folders());
    }
    for name in order.lines.iter().flat_map(|line| &line.names) {
        if !named.contains(name) {
            wrong.push(format!("the layers name {name}, and there is no such file"));
        }
    }
    wrong.extend(unreached(sources, package));
    wrong
}

fn names_once(order: &Order) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let names = order.lines.iter().flat_map(|line| &line.names);
    let twice = names.filter(|name| !seen.insert(*name));
    twice.map(|name| format!("the layers name {name} twice")).collect()
}

/// Files that no module declares.
fn unreached(sources: &[Crate], package: &Path) -> Vec<String> {
    // A package without sources of its own compiles another's.
    if sources.is_empty() {
        return Vec::new();
    }
    let known = |path: &Path| {
        sources.iter().any(|source| {
            source.files.iter().any(|file| file.path == path)
                || source
                    .left_out
                    .iter()
                    .any(|(file, inner)| file == path || path.starts_with(inner))
        })
    };
    let mut wrong = Vec::new();
    let mut folders = vec![package.join("src")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && !known(&path) {
                wrong.push(format!("{}: no module is this file's", shown(&path, package)));
            }
        }
    }
    wrong
}

fn shown(path: &Path, package: &Path) -> String {
    let outer = package.parent().unwrap_or(package);
    path.strip_prefix(outer).unwrap_or(path).display().to_string()
}

/// A crate, and where each of its files stands.
struct Layers<'a> {
    order: &'a Order,
    source: &'a Crate,
    package: &'a Path,
    uses: Uses,
    /// By file: the line, and the name there that covers it.
    lines: Vec<Option<usize>>,
    names: Vec<Option<String>>,
}

impl<'a> Layers<'a> {
    fn new(order: &'a Order, source: &'a Crate, package: &'a Path) -> Self {
        let mut line_of = HashMap::new();
        for (number, line) in order.lines.iter().enumerate() {
            line_of.extend(line.names.iter().map(|name| (name.as_str(), number)));
        }
        let place = |file: &str| {
            // The file itself, or the innermost folder around it.
            let mut name = file;
            loop {
                if let Some(&line) = line_of.get(name) {
                    return (Some(line), Some(name.to_owned()));
                }
                match name.rsplit_once('/') {
                    Some((outer, _)) => name = outer,
                    None => return (None, None),
                }
            }
        };
        let (lines, names) = source.files.iter().map(|file| place(&file.name)).unzip();
        Self { order, source, package, uses: source.uses(), lines, names }
    }

    fn name(&self, file: usize) -> &str {
        &self.source.files[file].name
    }

    /// Where a file uses another.
    fn places(&self, from: usize, to: usize) -> String {
        let path = shown(&self.source.files[from].path, self.package);
        let uses = self.uses[&(from, to)].iter();
        let mut lines: Vec<String> =
            uses.map(|(line, written)| format!("{path}:{line}: {written}")).collect();
        if lines.len() > 3 {
            let more = lines.len() - 3;
            lines.truncate(3);
            lines.push(format!("and {more} more"));
        }
        lines.join("\n        ")
    }

    fn unnamed(&self) -> Vec<String> {
        let files = self.source.files.iter().zip(&self.lines);
        files
            .filter(|(_, line)| line.is_none())
            .map(|(file, _)| {
                let path = shown(&file.path, self.package);
                format!("{path}: no line of the layers names {}", file.name)
            })
            .collect()
    }

    /// Uses of a file on a line below one's own.
    fn upward(&self) -> Vec<String> {
        let against = self.uses.keys().filter(|&&(from, to)| {
            matches!((self.lines[from], self.lines[to]), (Some(from), Some(to)) if to > from)
        });
        against
            .map(|&(from, to)| {
                let (user, used) = (self.name(from), self.name(to));
                let places = self.places(from, to);
                format!("{user} uses {used}, which is on a later line:\n        {places}")
            })
            .collect()
    }

    /// Files on one line that know each other, where the line does not say so; and where it does
    /// say so, names that do not.
    fn circles(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, line) in self.order.lines.iter().enumerate() {
            let files: Vec<usize> =
                (0..self.lines.len()).filter(|&file| self.lines[file] == Some(number)).collect();
            let mut stated = BTreeSet::new();
            for circle in self.circles_among(&files) {
                let names: BTreeSet<&str> =
                    circle.iter().filter_map(|&file| self.names[file].as_deref()).collect();
                let known = line.circles.iter().position(|group| {
                    names == group.iter().map(String::as_str).collect::<BTreeSet<_>>()
                });
                if let Some(known) = known {
                    stated.insert(known);
                    continue;
                }
                let files: Vec<&str> = circle.iter().map(|&file| self.name(file)).collect();
                let inner = self
                    .uses
                    .keys()
                    .filter(|(from, to)| circle.contains(from) && circle.contains(to));
                let places: Vec<String> = inner.map(|&(from, to)| self.places(from, to)).collect();
                let (files, places) = (files.join(", "), places.join("\n        "));
                wrong.push(format!("a circle of {files}:\n        {places}"));
            }
            for (known, group) in line.circles.iter().enumerate() {
                let all_there =
                    group.iter().all(|name| self.names.iter().flatten().any(|named| named == name));
                if all_there && !stated.contains(&known) {
                    wrong.push(format!("{}: there is no such circle", group.join(" <-> ")));
                }
            }
        }
        wrong
    }

    /// Sets of `files` in which each reaches each other by uses among them.
    fn circles_among(&self, files: &[usize]) -> Vec<Vec<usize>> {
        let reached = |from: usize| {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
            while let Some(at) = todo.pop() {
                for &to in files {
                    if self.uses.contains_key(&(at, to)) && seen.insert(to) {
                        todo.push(to);
                    }
                }
            }
            seen
        };
        let reached: HashMap<usize, BTreeSet<usize>> =
            files.iter().map(|&file| (file, reached(file))).collect();
        let mut circles: Vec<Vec<usize>> = Vec::new();
        for &file in files {
            let circle: Vec<usize> = files
                .iter()
                .copied()
                .filter(|other| reached[&file].contains(other) && reached[other].contains(&file))
                .collect();
            if circle.len() > 1 && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    /// Folders with a line between their files that has files from outside: the order of the
    /// folders is another than that of the files.
    fn torn_folders(&self) -> Vec<String> {
        let folders: BTreeSet<&str> = self
            .source
            .files
            .iter()
            .filter_map(|file| file.name.rsplit_once('/').map(|(folder, _)| folder))
            .collect();
        let mut wrong = Vec::new();
        for folder in folders {
            let inside = |file: usize| {
                let rest = self.name(file).strip_prefix(folder);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let placed = (0..self.lines.len()).filter_map(|file| Some((file, self.lines[file]?)));
            let (own, others): (Vec<_>, Vec<_>) = placed.partition(|&(file, _)| inside(file));
            let lines = || own.iter().map(|&(_, line)| line);
            let (Some(first), Some(last)) = (lines().min(), lines().max()) else { continue };
            let between: Vec<&str> = others
                .iter()
                .filter(|&&(_, line)| first < line && line < last)
                .map(|&(file, _)| self.name(file))
                .collect();
            if !between.is_empty() {
                let between = between.join(", ");
                wrong.push(format!("the folder {folder} stands on both sides of {between}"));
            }
        }
        wrong
    }
}
