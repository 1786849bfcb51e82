//! The public interface of each library, compared with its list in `api/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use public_api::Builder;
use serde::Deserialize;

/// The format of rustdoc's JSON that `public-api` reads: that of Rust 1.95.
const FORMAT: u64 = 57;

/// Compares the public interfaces with `api/*.txt`, or with `write` writes those anew.
pub(crate) fn run(root: &Path, packages: &[String], write: bool) -> Result<()> {
    let mut changed = Vec::new();
    for package in packages {
        let list = root.join("api").join(package).with_extension("txt");
        let Some(now) = listing(&rustdoc_json(root, package)?)? else {
            println!("ABSENT: a toolchain whose rustdoc writes JSON of format {FORMAT} (1.95)");
            return Ok(());
        };
        if write {
            fs::write(&list, &now)?;
        }
        let recorded = fs::read_to_string(&list).unwrap_or_default();
        println!("{package}: {} lines of public interface", now.lines().count());
        let changes = changes(&recorded, &now);
        if !changes.is_empty() {
            changed.push(format!("{}:\n    {}", list.display(), changes.join("\n    ")));
        }
    }
    if !changed.is_empty() {
        let changed = changed.join("\n");
        bail!(
            "public interfaces have changed (`.ci/api --write` makes the lists anew):\n{changed}"
        );
    }
    Ok(())
}

/// Runs rustdoc over a library with all its features: the path of the JSON that it writes.
fn rustdoc_json(root: &Path, package: &str) -> Result<PathBuf> {
    // A folder of its own: build scripts run anew where this variable comes or goes.
    let target = root.join("target/api");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["rustdoc", "--locked", "--quiet", "--lib", "--all-features", "-p", package])
        .args(["--", "-Zunstable-options", "--output-format=json"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(root)
        .status()?;
    if !status.success() {
        bail!("rustdoc failed for {package}");
    }
    Ok(target.join("doc").join(package.replace('-', "_")).with_extension("json"))
}

/// All that is public, a line each; `None` if this rustdoc writes another format.
fn listing(json: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Head {
        format_version: u64,
    }
    let head: Head = serde_json::from_slice(&fs::read(json)?)?;
    if head.format_version != FORMAT {
        return Ok(None);
    }
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .build()
        .with_context(|| json.display().to_string())?;
    // Traits without a stable name come and go with the compiler.
    let unstable = [" core::marker::Freeze for ", " core::marker::UnsafeUnpin for "];
    let lines = api.items().map(|item| format!("{item}\n"));
    Ok(Some(lines.filter(|line| !unstable.iter().any(|name| line.contains(name))).collect()))
}

/// Lines that were removed (`-`) and added (`+`).
fn changes(recorded: &str, now: &str) -> Vec<String> {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) =
        (recorded.lines().collect(), now.lines().collect());
    let gone = old.difference(&new).map(|line| format!("-{line}"));
    gone.chain(new.difference(&old).map(|line| format!("+{line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn removed_and_added_lines_are_listed() {
        let recorded = "pub fn a::kept()\npub fn a::gone()\n";
        let now = "pub fn a::kept()\npub fn a::planted()\n";
        assert_eq!(changes(recorded, now), ["-pub fn a::gone()", "+pub fn a::planted()"]);
        assert_eq!(changes(now, now), [""; 0]);
        assert_eq!(changes("", now).len(), 2);
    }
}
