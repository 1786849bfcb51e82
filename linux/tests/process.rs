//! Processes that are there are taken over as they are.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pervma_linux::{
    Config, Counts, Errno, Inference, Mm, NoBacking, ProcessError, Source, VmFlags, abi::*,
};

/// A process that is stopped.
struct Stopped(Child);

impl Stopped {
    fn new(program: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null());
        let Ok(child) = command.stderr(Stdio::null()).spawn() else {
            println!("NOT RUN: there is no {program}");
            return None;
        };
        let stopped = Self(child);
        // It sleeps when it has started: it waits for its input.
        stopped.wait_for('S');
        let pid = i32::try_from(stopped.0.id()).unwrap();
        // SAFETY: sends a signal to a child of this process that nobody has waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
        stopped.wait_for('T');
        Some(stopped)
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).unwrap()
    }

    fn wait_for(&self, state: char) {
        let begin = Instant::now();
        let wanted = format!("State:\t{state}");
        while !self.file("status").contains(&wanted) {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", self.file("status"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// In pages.
    fn counts(&self) -> Counts {
        let status = self.file("status");
        let count = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_ascii_whitespace().next().unwrap().parse::<usize>().unwrap() / 4
        };
        Counts {
            total: count("VmSize:"),
            data: count("VmData:"),
            stack: count("VmStk:"),
            exec: count("VmExe:") + count("VmLib:"),
            locked: count("VmLck:"),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_process_is_taken_over_as_it_is() {
    for (program, arguments) in
        [("cat", &[][..]), ("sh", &["-c", "read line"]), ("python3", &["-c", "input()"])]
    {
        let Some(process) = Stopped::new(program, arguments) else { continue };
        let pid = process.0.id();
        let (mm, inferred) = Mm::of_process(pid, NoBacking, Config::default()).unwrap();
        let maps = process.file("maps");
        let maps: String =
            maps.lines().filter(|l| !l.ends_with("[vsyscall]")).map(|l| format!("{l}\n")).collect();
        assert_eq!(mm.maps().unwrap(), maps, "{program}");
        assert_eq!(mm.counts(), process.counts(), "{program}");
        let is_inferred = |what| inferred.iter().any(|inferred| inferred.what == what);
        assert!(is_inferred(Inference::MmapBase) && is_inferred(Inference::Brk));
        assert!(is_inferred(Inference::File) && is_inferred(Inference::AnonVma));

        // What the kernel says of its mappings.
        let mut special = Vec::new();
        mm.for_each(|range, vma| {
            if matches!(vma.source, Source::Special(_)) {
                special.push((range, vma.flags));
            }
        })
        .unwrap();
        let (vdso, _) = special.iter().find(|(_, flags)| flags.has(VmFlags::EXEC)).unwrap();
        assert_eq!(mm.munmap(vdso.start, PAGE), Err(Errno::EINVAL));
        // Memory that is mapped next lies below what was mapped first.
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        let addr = mm.mmap(0, PAGE, PROT_READ, flags, None, 0).unwrap();
        assert!(addr < mm.config().layout.mmap_base && addr + (1 << 40) > vdso.start);
        assert!(mm.brk(mm.config().layout.brk + PAGE) > mm.config().layout.brk);
    }
}

#[test]
fn what_is_no_process_is_an_error() {
    // Above the largest number of a process.
    let error = Mm::of_process(1 << 30, NoBacking, Config::default()).unwrap_err();
    assert!(matches!(&error, ProcessError::Proc(error) if error.raw_os_error() == Some(2)));
    assert!(error.to_string().starts_with("reading /proc: "), "{error}");
}
