//! The licences of all that is compiled: what users get, and what only builds or tests it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use spdx::{Expression, LicenseReq, ParseMode};

use crate::workspace::{Package, Workspace};

/// Licences whose terms a user of pervma under MIT or Apache-2.0 can keep, too.
const COMPATIBLE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks the workspace at `root` and the one in `fuzz` below it.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for folder in [root.to_owned(), root.join("fuzz")] {
        let workspace = Workspace::with_dependencies(&folder)?;
        let mut counts = BTreeMap::<&str, usize>::new();
        for package in &workspace.packages {
            *counts.entry(package.license.as_deref().unwrap_or("none")).or_default() += 1;
        }
        println!("{}: {} packages", folder.display(), workspace.packages.len());
        counts.iter().for_each(|(licence, count)| println!("    {count:3} {licence}"));
        wrong.extend(workspace.packages.iter().filter_map(refused));
    }
    if !wrong.is_empty() {
        bail!("not compatible with MIT OR Apache-2.0:\n    {}", wrong.join("\n    "));
    }
    Ok(())
}

/// Why a package may not be used, if it may not.
fn refused(package: &Package) -> Option<String> {
    let Some(licence) = &package.license else {
        return Some(format!("{} states no licence", package.name));
    };
    match Expression::parse_mode(licence, ParseMode::LAX) {
        Err(error) => Some(format!("{}: {licence:?}: {}", package.name, error.reason)),
        Ok(expression) if expression.evaluate(is_compatible) => None,
        Ok(_) => Some(format!("{}: {licence}", package.name)),
    }
}

fn is_compatible(licence: &LicenseReq) -> bool {
    COMPATIBLE.contains(&licence.to_string().as_str())
}

#[cfg(test)]
mod tests {
    use super::refused;
    use crate::workspace::Package;

    fn package(licence: &str) -> Package {
        let json = format!(
            r#"{{ "name": "planted", "manifest_path": "/x", "license": {licence},
                "dependencies": [], "targets": [] }}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_licence_that_asks_for_more_is_refused() {
        for bad in ["GPL-3.0-only", "MIT AND GPL-2.0-or-later", "MPL-2.0", "AGPL-3.0", "Apache-1.1"]
        {
            let refused = refused(&package(&format!("{bad:?}")));
            assert!(refused.is_some_and(|why| why.contains("planted")), "{bad}");
        }
        for unknown in ["null", "\"\"", "\"ask the author\"", "\"GPL-3.0 WITH no-exception\""] {
            assert!(refused(&package(unknown)).is_some(), "{unknown}");
        }
    }

    #[test]
    fn a_choice_is_made_for_the_compatible_one() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR GPL-2.0-only) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(refused(&package(&format!("{good:?}"))), None);
        }
    }
}
