//! Which files a path leads to: the one with what it names, and those that re-export it on the way.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::source::{Crate, Kind, ROOT};

/// One file uses another: the lines, each with the path that stands there.
pub(crate) type Uses = BTreeMap<(usize, usize), BTreeSet<(usize, String)>>;

impl Crate {
    /// All uses of one file by another. A use by method calls only names no path, and is not found.
    pub(crate) fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for (at, module) in self.modules.iter().enumerate() {
            for mention in &module.mentions {
                let mut way = Way::new(self, mention.kind != Kind::Code);
                if let [name] = mention.path.as_slice() {
                    way.macro_named(name);
                }
                way.resolve(at, &mention.path, Sought::Head);
                // What a folder shows of its own files, it does not use.
                let inner = format!("{}/", self.files[module.file].name);
                let shown = |file: usize| {
                    mention.kind == Kind::ReExport && self.files[file].name.starts_with(&inner)
                };
                way.files.retain(|&file| file != module.file && !shown(file));
                for file in way.files {
                    let written = (mention.line, mention.path.join("::"));
                    uses.entry((module.file, file)).or_default().insert(written);
                }
            }
        }
        uses
    }
}

/// How much of a path must be found for it to lead into this crate.
#[derive(Clone, Copy, PartialEq)]
enum Sought {
    /// Nothing: it leads into this crate, and names that are not found are made by a macro.
    Nothing,
    /// The first name, which may be another crate's or the language's.
    Head,
    /// All of it: a glob import may bring it.
    All,
}

/// The files on the way of one path.
struct Way<'a> {
    of: &'a Crate,
    imported: bool,
    files: BTreeSet<usize>,
    /// Modules, and names that were looked up in them: imports may go round.
    looked_up: HashSet<(usize, String)>,
}

impl<'a> Way<'a> {
    fn new(of: &'a Crate, imported: bool) -> Self {
        Self { of, imported, files: BTreeSet::new(), looked_up: HashSet::new() }
    }

    /// A macro in scope by the order of the text, or by `#[macro_export]`.
    fn macro_named(&mut self, name: &str) -> bool {
        let mut files = self.of.macros.iter().filter(|(macro_name, _)| macro_name == name);
        match (files.next(), files.next()) {
            (Some(&(_, file)), None) => {
                self.files.insert(file);
                true
            }
            _ => false,
        }
    }

    /// Follows a path that stands in the module `from`. Says whether it leads into this crate.
    fn resolve(&mut self, from: usize, path: &[String], sought: Sought) -> bool {
        let Some((head, rest)) = path.split_first() else { return false };
        let inner = if sought == Sought::All { Sought::All } else { Sought::Nothing };
        match head.as_str() {
            "crate" => self.look_up(ROOT, rest, inner),
            "self" => self.look_up(from, rest, inner),
            "super" => {
                let (mut module, mut rest) = (self.of.modules[from].parent, rest);
                while let (Some(at), Some((head, tail))) = (module, rest.split_first())
                    && head == "super"
                {
                    (module, rest) = (self.of.modules[at].parent, tail);
                }
                module.is_some_and(|module| self.look_up(module, rest, inner))
            }
            name if self.of.own_names.contains(name) => self.look_up(ROOT, rest, inner),
            // A module by itself is no value: a variable of its name is meant.
            name if rest.is_empty() && !self.imported && self.has_child(from, name) => false,
            _ => {
                self.look_up(from, path, if sought == Sought::All { sought } else { Sought::Head })
            }
        }
    }

    fn has_child(&self, module: usize, name: &str) -> bool {
        self.of.modules[module].children.iter().any(|(child, _)| child == name)
    }

    /// Follows `path` from inside the module `at`.
    fn look_up(&mut self, at: usize, path: &[String], sought: Sought) -> bool {
        let module = &self.of.modules[at];
        let Some((name, rest)) = path.split_first() else {
            self.files.insert(module.file);
            return true;
        };
        let mut found = false;
        let inner = if sought == Sought::All { Sought::All } else { Sought::Nothing };
        for (_, child) in module.children.iter().filter(|(child, _)| child == name) {
            found |= self.look_up(*child, rest, inner);
        }
        if module.items.contains(name) {
            self.files.insert(module.file);
            found = true;
        }
        if self.looked_up.insert((at, name.clone())) {
            for import in module.imports.iter().filter(|import| import.name == *name) {
                let ours = self.resolve(at, &[&import.path, rest].concat(), Sought::Head);
                // What the root re-exports is where it comes from, unless that is another crate.
                if at != ROOT || !ours {
                    self.files.insert(module.file);
                }
                found = true;
            }
            for glob in module.imports.iter().filter(|import| import.name == "*") {
                let brought = !found && self.resolve(at, &[&glob.path, path].concat(), Sought::All);
                if brought && at != ROOT {
                    self.files.insert(module.file);
                }
                found |= brought;
            }
        }
        if !found && at == ROOT && rest.is_empty() {
            found = self.macro_named(name);
        }
        if !found && sought == Sought::Nothing {
            self.files.insert(module.file);
        }
        found || sought == Sought::Nothing
    }
}
