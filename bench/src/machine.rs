//! What the figures were measured on.

use std::fmt;
use std::fs;
use std::thread;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
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
        Self { kernel, cpu: cpu.to_owned(), cpus }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} CPUs, {}", self.cpu, self.cpus, self.kernel)
    }
}
