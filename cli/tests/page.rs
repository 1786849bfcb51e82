//! What `pervma page` says of files that it can page.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;

use common::{pervma, run};
use serde_json::Value;
use sha2::{Digest, Sha256};

const KEYS: [&str; 22] = [
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
            assert!(json["ns_per_fault"].as_f64().unwrap() > 0.0);
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
    for text in ["10000 bytes, 3 pages", "faults    3, ", "every byte matches"] {
        assert!(ended.stdout.contains(text), "{text} is missing in: {}", ended.stdout);
    }
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

/// A file of zeros that takes long enough to page for somebody to shorten it meanwhile.
#[test]
fn a_file_that_is_shortened_meanwhile_is_one_line() {
    for mode in ["signal", "thread"] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data");
        let data = fs::File::create(&file).unwrap();
        data.set_len(400 << 20).unwrap();
        let mut command = pervma(["page".as_ref(), file.as_os_str()]);
        command.args(["--mode", mode, "--resident", "1M", "--threads", "2"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        data.set_len(4096).unwrap();
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("data") && said.contains("shorten"), "{said}");
    }
}
