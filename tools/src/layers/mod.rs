//! Checks the imports against ARCHITECTURE.md's layers: a file uses files of its own line and of
//! those above, no two files use each other, and packages depend on each other as the page says.

mod check;
mod list;
mod names;
mod packages;
mod source;
#[cfg(test)]
mod tests;
mod tokens;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::list::Claims;
use self::source::Crate;
use crate::workspace::{Package, Workspace};

/// Checks all packages of the workspace at `root`. Violations in the packages in `open` are printed
/// but do not fail; a package there without any does.
pub(crate) fn run(root: &Path, open: &[String]) -> Result<()> {
    let page = root.join("ARCHITECTURE.md");
    let claims = Claims::read(&fs::read_to_string(&page)?).context("ARCHITECTURE.md")?;
    let workspace = Workspace::read(root)?;
    let mut wrong = packages::check(&claims, &workspace);
    let mut clean = Vec::new();
    for package in &workspace.packages {
        let found = check_package(&claims, package)?;
        match (found.len(), open.contains(&package.name)) {
            (0, true) => wrong.push(format!("{} is clean: it is open no more", package.name)),
            (0, false) => clean.push(package.name.as_str()),
            (number, true) => {
                println!("{}, not in order yet, {number} known:", package.name);
                found.iter().for_each(|found| println!("    {found}"));
            }
            (_, false) => {
                wrong.extend(found.iter().map(|found| format!("{}: {found}", package.name)));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("against the layers in ARCHITECTURE.md:\n    {}", wrong.join("\n    "));
    }
    println!("in order: {}", clean.join(", "));
    Ok(())
}

/// The violations in one package.
fn check_package(claims: &Claims, package: &Package) -> Result<Vec<String>> {
    let roots = package.shipped_roots();
    let sources: Vec<Crate> = roots.map(Crate::read).collect::<Result<_>>()?;
    match claims.orders.get(&package.name) {
        Some(order) => Ok(check::check(order, &sources, package.folder())),
        // Nothing to order; and a lesson is read from its first line to its last.
        None if sources.iter().all(|source| source.files.len() == 1) || package.is_example() => {
            Ok(Vec::new())
        }
        None => Ok(vec!["no layers are claimed".to_owned()]),
    }
}
