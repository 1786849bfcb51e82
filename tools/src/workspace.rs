//! What `cargo metadata` says.

use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The packages of a workspace, or with all that they depend on.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) license: Option<String>,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing.
    kind: Option<String>,
    /// Of this workspace.
    path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Workspace {
    /// The members of the workspace in the folder `root`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        Self::metadata(root, &["--no-deps"])
    }

    /// The same, and all that they depend on, for whatever target.
    pub(crate) fn with_dependencies(root: &Path) -> Result<Self> {
        Self::metadata(root, &[])
    }

    fn metadata(root: &Path, arguments: &[&str]) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version=1", "--locked"])
            .args(arguments)
            .current_dir(root)
            .output()?;
        if !output.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata")
    }

    /// The packages of this workspace that one of them depends on, `in_tests` only or always.
    pub(crate) fn inner_dependencies(&self, package: &Package, in_tests: bool) -> Vec<String> {
        let dependencies = package.dependencies.iter().filter(|dependency| {
            dependency.path.is_some() && (dependency.kind.as_deref() == Some("dev")) == in_tests
        });
        dependencies.map(|dependency| dependency.name.clone()).collect()
    }
}

impl Package {
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }

    /// A lesson, under `examples/`.
    pub(crate) fn is_example(&self) -> bool {
        self.folder().parent().is_some_and(|outer| outer.ends_with("examples"))
    }

    /// The roots of its library and its commands, if they are its own.
    pub(crate) fn shipped_roots(&self) -> impl Iterator<Item = &Path> {
        let shipped = |target: &&Target| {
            let kinds = ["lib", "bin", "cdylib"]; // the last for C
            target.kind.iter().any(|kind| kinds.contains(&kind.as_str()))
                && !target.src_path.components().any(|part| part == Component::ParentDir)
        };
        self.targets.iter().filter(shipped).map(|target| target.src_path.as_path())
    }
}
