//! What `pervma page` says of files that it can page.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/terminal.rs"]
mod terminal;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{pervma, run};
use serde_json::Value;
use sha2::{Digest, Sha256};
use terminal::on_terminal;

const KEYS: [&str; 29] = [
    "file",
    "bytes",
    "pages",
    "threads",
    "mode",
    "granule",
    "churn",
    "faults",
    "ns_per_fault",
    "ns_per_page",
    "wall_s",
    "touching_s",
    "mb_per_s",
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "longest_ns",
    "lookups_first_try",
    "lookups_retried",
    "lookups_slow",
    "pages_filled",
    "resident",
    "most_resident",
    "evicted",
    "serves_system_calls",
    "writer_ops",
    "writer_ops_per_s",
    "sha256",
    "matches",
];

/// Bytes without a pattern that repeats with the page.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs with `--json` and returns the object, its keys' order checked.
fn page_json(file: &Path, threads: Option<usize>) -> Value {
    match threads {
        Some(threads) => page_json_with(file, &["--threads", &threads.to_string()]),
        None => page_json_with(file, &[]),
    }
}

fn page_json_with(file: &Path, more: &[&str]) -> Value {
    let mut command = pervma(["page".as_ref(), file.as_os_str(), "--json".as_ref()]);
    command.args(more);
    let ended = run(command);
    assert_eq!((ended.exit, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    assert_eq!(ended.stdout.lines().count(), 1);
    let at = KEYS.map(|key| ended.stdout.find(&format!("\"{key}\":")).unwrap());
    assert!(at.is_sorted(), "keys are out of order: {}", ended.stdout);
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json.as_object().unwrap().len(), KEYS.len());
    json
}

#[test]
fn every_byte_of_files_of_many_sizes_matches() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    for len in [1, 4095, 4096, 4097, 3_000_001] {
        let data = bytes(len);
        fs::write(&file, &data).unwrap();
        for threads in [1, 2, 7] {
            let json = page_json(&file, Some(threads));
            let pages = len.div_ceil(4096);
            assert_eq!(json["file"], file.to_str().unwrap());
            assert_eq!(json["bytes"], len);
            assert_eq!(json["pages"], pages);
            assert_eq!(json["threads"], threads.min(pages));
            assert_eq!(json["mode"], "signal");
            assert_eq!(json["granule"], 4096);
            assert_eq!(json["churn"], false);
            assert_eq!(json["faults"], pages);
            check_times(&json);
            let lookups =
                ["lookups_first_try", "lookups_retried"].map(|key| json[key].as_u64().unwrap());
            assert_eq!(lookups.iter().sum::<u64>(), pages as u64);
            assert_eq!(json["lookups_slow"], 0);
            assert_eq!(json["writer_ops"], 0);
            assert_eq!(json["sha256"], sha256(&data));
            assert_eq!(json["matches"], true);
        }
    }
}

/// Times are positive, and longer ones are not shorter.
fn check_times(json: &Value) {
    let number = |key: &str| json[key].as_f64().unwrap();
    for key in ["wall_s", "touching_s", "p50_ns"] {
        assert!(number(key) > 0.0, "{key}: {json}");
    }
    let times = ["p50_ns", "p99_ns", "p999_ns", "longest_ns"].map(number);
    assert!(times.is_sorted(), "{json}");
    assert!(number("touching_s") <= number("wall_s"), "{json}");
    let rate = json["bytes"].as_f64().map(|bytes| bytes / 1e6 / number("touching_s"));
    let near = |rate: f64| (rate - number("mb_per_s")).abs() <= 0.06 + rate / 10.0;
    assert!(rate.is_none_or(near), "{json}");
}

#[test]
fn more_threads_than_pages_is_fine() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes(5000)).unwrap();
    assert_eq!(page_json(file.path(), Some(1024))["faults"], 2);
}

#[test]
fn without_a_file_the_program_pages_itself_from_every_core() {
    let ended = run(pervma(["page", "--json"]));
    assert_eq!(ended.exit, Some(0), "{}", ended.stderr);
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    let program = fs::read(env!("CARGO_BIN_EXE_pervma")).unwrap();
    assert_eq!(json["sha256"], sha256(&program));
    assert_eq!(json["threads"], std::thread::available_parallelism().unwrap().get());
}

#[test]
fn the_report_for_people_has_both_digests() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let data = bytes(10_000);
    fs::write(file.path(), &data).unwrap();
    let ended = run(pervma(["page".as_ref(), file.path().as_os_str()]));
    // No progress bar in a pipe.
    assert_eq!((ended.exit, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout.matches(&sha256(&data)).count(), 2);
    for text in
        ["10000 bytes: 3 pages", "MB/s", "p99.9", "█", "faults    3, ", "every byte matches"]
    {
        assert!(ended.stdout.contains(text), "{text} is missing in: {}", ended.stdout);
    }
}

#[test]
fn one_is_not_many() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [7]).unwrap();
    let mut command = pervma(["page".as_ref(), file.path().as_os_str()]);
    command.args(["--threads", "1"]);
    let ended = run(command);
    assert!(ended.stdout.contains("1 byte: 1 page of 4096, 1 thread,"), "{}", ended.stdout);
}

#[test]
fn the_kernels_mapping_and_ordinary_reads_are_compared_on_request() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes(1_000_000)).unwrap();
    let mut command = pervma(["page".as_ref(), file.path().as_os_str()]);
    command.args(["--compare", "--json"]);
    let json: Value = serde_json::from_str(&run(command).stdout).unwrap();
    let compared = json["compared"].as_array().unwrap();
    let names: Vec<_> = compared.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pervma", "mmap", "read"]);
    compared.iter().for_each(check_times);
    assert_eq!((&compared[0]["p50_ns"], &json["matches"]), (&json["p50_ns"], &true.into()));

    let mut command = pervma(["page".as_ref(), file.path().as_os_str()]);
    command.arg("--compare");
    let ended = run(command);
    for name in ["pervma ", "mmap ", "read "] {
        let line = ended.stdout.lines().find(|line| line.trim_start().starts_with(name));
        assert!(line.is_some(), "{}", ended.stdout);
    }
}

#[test]
fn a_picture_is_drawn_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let (file, picture) = (directory.path().join("data"), directory.path().join("picture.svg"));
    for len in [1, 4097, 1_000_000] {
        fs::write(&file, bytes(len)).unwrap();
        page_json_with(&file, &["--svg", picture.to_str().unwrap()]);
        let drawn = fs::read_to_string(&picture).unwrap();
        for text in ["<svg", "touches by how long they took", "touches by where in the file"] {
            assert!(drawn.contains(text), "{text}");
        }
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{len} bytes");
    }
}

/// On a terminal something is shown for each thing that takes time; a pipe gets nothing.
#[test]
fn what_is_going_on_is_shown_on_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    fs::write(&file, bytes(3_000_000)).unwrap();
    let mut command = pervma(["page".as_ref(), file.as_os_str()]);
    command.args(["--churn", "--compare"]);
    let (child, mut terminal) = on_terminal(command);
    for what in [
        "reading the file once",
        "mapping the file",
        "touching while mappings change",
        "reading again what was discarded",
        "hashing",
        "touching in the kernel's mapping",
        "reading",
    ] {
        terminal.wait_for(what);
    }
    terminal.rest();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("every byte matches\n"));
}

#[test]
fn a_name_that_is_not_utf8_works() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(OsStr::from_bytes(b"\xff\xfe name"));
    fs::write(&file, b"x").unwrap();
    let json = page_json(&file, None);
    assert!(json["file"].as_str().unwrap().ends_with("\u{fffd}\u{fffd} name"));
}

#[test]
fn a_reader_that_has_left_is_not_an_error() {
    for arguments in [vec!["page"], vec!["page", "--json"], vec!["--help"]] {
        let mut command = pervma(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for (option, text) in [("--help", "Usage:"), ("--version", "pervma ")] {
        let ended = run(pervma([option]));
        assert_eq!((ended.exit, ended.stderr.as_str()), (Some(0), ""));
        assert!(ended.stdout.contains(text));
    }
}

#[test]
fn every_granule_and_mode_matches_quietly_and_under_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    let data = bytes(5_000_003);
    fs::write(&file, &data).unwrap();
    for (granule, bytes) in [("4K", 4 << 10), ("64k", 64 << 10), ("2M", 2 << 20)] {
        for mode in ["signal", "thread"] {
            let how = ["--granule", granule, "--mode", mode, "--threads", "2"];
            let json = page_json_with(&file, &how);
            assert_eq!((&json["granule"], &json["mode"]), (&bytes.into(), &mode.into()));
            assert_eq!(json["pages_filled"], data.len().div_ceil(4096));
            // Two threads may fault in one granule at the same time.
            assert!(json["faults"].as_u64().unwrap() >= data.len().div_ceil(bytes) as u64);
            assert_eq!(json["sha256"], sha256(&data));

            let json = page_json_with(&file, &[&how[..], &["--churn"]].concat());
            let number = |key: &str| json[key].as_f64().unwrap();
            let pages = number("pages");
            assert_eq!((&json["churn"], &json["sha256"]), (&true.into(), &sha256(&data).into()));
            assert!(number("pages_filled") >= 1.1 * pages, "{json}");
            assert!(number("lookups_retried") + number("lookups_slow") > 0.0, "{json}");
            assert!(number("writer_ops") > 0.0, "{json}");
        }
    }
}

#[test]
fn the_smallest_file_can_be_churned() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    fs::write(&file, [5]).unwrap();
    let json = page_json_with(&file, &["--churn"]);
    assert_eq!(json["sha256"], sha256(&[5]));
}

#[test]
fn a_bound_far_below_the_size_holds() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    let data = bytes(3_000_001);
    fs::write(&file, &data).unwrap();
    for (bound, bytes, more) in [
        ("100K", 100 << 10, &[][..]),
        ("100K", 100 << 10, &["--mode", "thread"]),
        ("1M", 1 << 20, &["--churn"]),
        ("1M", 1 << 20, &["--mode", "thread", "--churn"]),
    ] {
        let how = [&["--resident", bound, "--threads", "2"], more].concat();
        let json = page_json_with(&file, &how);
        assert_eq!(json["sha256"], sha256(&data));
        assert!(json["most_resident"].as_u64().unwrap() <= bytes, "{json}");
        // What is discarded all the time need not be evicted.
        assert!(json["churn"] == true || json["evicted"].as_u64().unwrap() > 0, "{json}");
    }
}

/// A file of zeros that takes long enough to page to be shortened meanwhile.
#[test]
fn a_file_that_is_shortened_meanwhile_is_one_line() {
    for mode in ["signal", "thread"] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data");
        let data = fs::File::create(&file).unwrap();
        data.set_len(400 << 20).unwrap();
        let mut command = pervma(["page".as_ref(), file.as_os_str()]);
        command.args(["--mode", mode, "--resident", "1M", "--threads", "2"]);
        let (child, mut terminal) = on_terminal(command);
        terminal.wait_for("touching");
        data.set_len(4096).unwrap();
        let said = terminal.rest().to_owned();
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert_eq!(said.matches("pervma: ").count(), 1, "{said}");
        assert!(said.contains("data") && said.contains("shorten"), "{said}");
    }
}

#[test]
fn a_small_stack_is_enough() {
    for command in ["page", "page --churn --threads 1", "differ --ops 300"] {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -s 64 && exec \"$0\" {command}");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_pervma")]).stdin(Stdio::null());
        let ended = run(shell);
        // 2: this kernel cannot be compared with.
        let done = ended.exit == Some(0) || (ended.exit == Some(2) && command.contains("differ"));
        assert!(done, "{command}: {}", ended.stderr);
    }
}

/// A control group of memory with a limit, which goes when this does.
struct Group(PathBuf);

impl Group {
    /// Makes one below this process's own, if this process may.
    fn new(limit: usize) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = |start: &str| {
            let line = groups.lines().find(|line| line.contains(start))?;
            Some(line.rsplit(':').next()?.trim_start_matches('/').to_owned())
        };
        let name = format!("pervma-test-{}", std::process::id());
        for (top, start, file) in [
            ("/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "0::", "memory.max"),
        ] {
            let Some(own) = own(start) else { continue };
            let group = Self(Path::new(top).join(own).join(&name));
            if fs::create_dir(&group.0).is_ok()
                && fs::write(group.0.join(file), limit.to_string()).is_ok()
            {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_file_that_is_larger_than_memory_is_paged() {
    const LIMIT: usize = 96 << 20;
    let Some(group) = Group::new(LIMIT) else {
        println!("NOT RUN: this user may make no control group");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    let data = bytes(150_000_000);
    fs::write(&file, &data).unwrap();
    let mut shell = Command::new("sh");
    let script = "echo $$ > \"$1/cgroup.procs\" && exec \"$0\" page \"$2\" --json";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_pervma")]).args([&group.0, &file]);
    let ended = run(shell);
    assert_eq!(ended.exit, Some(0), "{}", ended.stderr);
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&json["sha256"], &json["matches"]), (&sha256(&data).into(), &true.into()));
    let most = json["most_resident"].as_u64().unwrap();
    assert!(most <= LIMIT as u64 && json["evicted"].as_u64().unwrap() > 0, "{json}");
}
