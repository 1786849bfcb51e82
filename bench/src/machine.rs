//! What the figures were measured on, and with.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// The crates that are measured.
const CRATES: [&str; 5] = ["pervma", "parking_lot", "arc-swap", "crossbeam-skiplist", "scc"];

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    rustc: String,
    versions: BTreeMap<String, String>,
}

impl Machine {
    pub(crate) fn detect() -> Self {
        let system = rustix::system::uname();
        let kernel = format!(
            "{} {}",
            system.sysname().to_string_lossy(),
            system.release().to_string_lossy()
        );
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu =
            model.map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let lock = include_str!("../../Cargo.lock");
        let of_crate = |name: &str| Some((name.to_owned(), version(lock, name)?.to_owned()));
        Self {
            kernel,
            cpu: cpu.to_owned(),
            cpus,
            rustc: env!("BENCH_RUSTC").to_owned(),
            versions: CRATES.into_iter().filter_map(of_crate).collect(),
        }
    }
}

impl Machine {
    pub(crate) fn name(&self) -> String {
        format!("{}, {} CPUs, {}", self.cpu, self.cpus, self.kernel)
    }

    /// Another machine, as far as anything is the same.
    #[cfg(test)]
    pub(crate) fn rename(&mut self, cpu: &str) {
        self.cpu = cpu.to_owned();
    }
}

/// While it lives the running thread has a few processors only, and so have all threads and
/// processes that it starts.
pub(crate) struct FewProcessors {
    before: CpuSet,
}

impl FewProcessors {
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn first(count: usize) -> rustix::io::Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut few = CpuSet::new();
        let there_are = (0..CpuSet::MAX_CPU).filter(|&number| before.is_set(number));
        there_are.take(count).for_each(|number| few.set(number));
        sched_setaffinity(None, &few)?;
        Ok(Self { before })
    }
}

impl Drop for FewProcessors {
    fn drop(&mut self) {
        // It was allowed to have them.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// The version of a package in a lock file.
fn version<'l>(lock: &'l str, name: &str) -> Option<&'l str> {
    let header = format!("name = \"{name}\"\nversion = \"");
    let (_, rest) = lock.split_once(&header)?;
    rest.split_once('"').map(|(version, _)| version)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name())?;
        write!(f, "{}", self.rustc)?;
        self.versions.iter().try_for_each(|(name, version)| write!(f, ", {name} {version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crate_has_a_version() {
        let machine = Machine::detect();
        assert_eq!(machine.versions.len(), CRATES.len());
        assert!(machine.versions.values().all(|version| version.contains('.')));
    }
}
