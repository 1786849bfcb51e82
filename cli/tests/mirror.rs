//! `pervma mirror`: what it prints and how it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Run, pervma, run};
use serde_json::Value;

/// Mirrors a program, and returns how it ended; `None` where no program can be mirrored.
fn mirror(arguments: &[&str]) -> Option<Run> {
    let able = run(pervma(["mirror", "--", "true"]));
    if able.exit == Some(2) {
        println!("NOT RUN: {}", able.stderr);
        return None;
    }
    Some(run(pervma([&["mirror"], arguments].concat())))
}

fn json(run: &Run) -> Value {
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 1, "{}", run.stdout);
    serde_json::from_str(lines[0]).unwrap()
}

fn count(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap()
}

#[test]
fn programs_of_any_machine_do_the_same() {
    let pipeline = "ls -l /usr/bin | sort | head -n 5 | wc -l";
    let python = "import threading, multiprocessing\n\
        def work(n): return len(bytearray(n << 20))\n\
        if __name__ == '__main__':\n\
        \x20   threads = [threading.Thread(target=work, args=(4,)) for _ in range(8)]\n\
        \x20   [thread.start() for thread in threads]\n\
        \x20   [thread.join() for thread in threads]\n\
        \x20   with multiprocessing.get_context('fork').Pool(3) as pool:\n\
        \x20       print(sum(pool.map(work, range(6))))\n";
    let programs: [&[&str]; 5] = [
        &["sh", "-c", pipeline],
        &["git", "--version"],
        &["gcc", "--version"],
        &["python3", "-c", python],
        &["perl", "-e", "fork; my @all = (1..100000); wait"],
    ];
    for program in programs {
        let Some(ended) = mirror(&[&["--json", "--limit", "300", "--"], program].concat()) else {
            return;
        };
        if ended.exit == Some(2) {
            println!("NOT RUN: {}", ended.stderr);
            continue;
        }
        assert_eq!(ended.exit, Some(0), "{program:?}: {}", ended.stderr);
        let json = json(&ended);
        assert_eq!((count(&json, "divergences"), count(&json, "resyncs")), (0, 0));
        assert_eq!(json["program"], program[0]);
        assert!(count(&json, "calls") > 10 && json["exit"] == 0 && json["limited"] == false);
        assert!(json["slowdown"].as_f64().unwrap() >= 1.0);
        let calls = json["by_call"].as_object().unwrap();
        assert!(calls["mmap"]["succeeded"].as_u64().unwrap() > 5);
        assert!(json["asked"]["first write"].as_u64().unwrap() > 0);
        match program[0] {
            "sh" => assert!(count(&json, "forks") >= 3 && ended.stderr == "5\n"),
            "perl" => assert!(count(&json, "forks") >= 1),
            "python3" => {
                assert!(count(&json, "threads") >= 8 && count(&json, "forks") >= 3);
                assert!(calls.contains_key("clone3") || calls.contains_key("clone"));
            }
            _ => {}
        }
    }
}

#[test]
fn it_ends_as_the_program_does() {
    let Some(ended) = mirror(&["--", "sh", "-c", "echo said; exit 7"]) else { return };
    assert_eq!((ended.exit, ended.stderr.as_str()), (Some(7), ""));
    assert!(ended.stdout.starts_with("said\nsh: "), "{}", ended.stdout);
    assert!(ended.stdout.contains(" mmap ") && ended.stdout.contains("it ended with 7\n"));
    assert!(ended.stdout.ends_with("no divergence\n"));

    let ended = mirror(&["--json", "--", "sh", "-c", "kill -SEGV $$"]).unwrap();
    assert_eq!(ended.exit, Some(128 + 11));
    let json = json(&ended);
    assert_eq!((&json["signal"], &json["exit"]), (&11.into(), &Value::Null));
}

#[test]
fn when_the_time_is_over_it_is_killed_with_all_that_it_has_started() {
    let script = "sleep 1000 & echo $! >&2; sleep 1000";
    let Some(ended) = mirror(&["--json", "--limit", "4", "--", "sh", "-c", script]) else {
        return;
    };
    assert_eq!(ended.exit, Some(124));
    let json = json(&ended);
    assert_eq!((&json["limited"], &json["signal"]), (&true.into(), &9.into()));
    assert_eq!(count(&json, "forks"), 2);
    let pid: u32 = ended.stderr.trim().parse().unwrap();
    // Whoever has adopted it may not have waited for it yet.
    let left = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(!left.starts_with("Name:\tsleep\n") || left.contains("State:\tZ"), "{left}");
}

#[test]
fn a_picture_is_drawn() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("picture.svg");
    let arguments = ["--svg", file.to_str().unwrap(), "--", "sh", "-c", "true; (true); true"];
    let Some(ended) = mirror(&arguments) else { return };
    assert_eq!((ended.exit, ended.stderr.as_str()), (Some(0), ""));
    let svg = fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("merge") && svg.contains("anonymous"));
    let ended = mirror(&["--svg", "/no/such/folder/picture", "--", "true"]).unwrap();
    assert_eq!(ended.exit, Some(2));
    assert!(ended.stderr.starts_with("pervma: --svg /no/such/folder/picture: "));
}

#[test]
fn what_cannot_be_run_is_told_in_one_line() {
    let Some(ended) = mirror(&["--", "no-such-program"]) else { return };
    let line = "pervma: no-such-program: No such file or directory (os error 2)\n";
    assert_eq!((ended.exit, ended.stdout.as_str(), ended.stderr.as_str()), (Some(2), "", line));
    let ended = mirror(&["--", "/etc/passwd"]).unwrap();
    assert_eq!(ended.exit, Some(2));
    assert!(ended.stderr.starts_with("pervma: /etc/passwd: Permission denied"), "{}", ended.stderr);
    for bad in [&["--"][..], &[], &["--limit", "0", "--", "true"], &["--limit", "x", "--", "true"]]
    {
        let ended = mirror(bad).unwrap();
        assert_eq!((ended.exit, ended.stdout.as_str()), (Some(2), ""), "{bad:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

/// A program of which no model can be made is not left behind, stopped.
#[test]
fn a_layout_that_is_not_modelled_is_told_in_one_line() {
    if mirror(&["--", "true"]).is_none() {
        return;
    }
    let mut command = Command::new("setarch");
    command.args(["--addr-compat-layout", env!("CARGO_BIN_EXE_pervma"), "mirror", "--", "true"]);
    if Command::new("setarch").arg("true").output().is_err() {
        println!("NOT RUN: there is no setarch");
        return;
    }
    let ended = run(command);
    let line = "pervma: true cannot be mirrored: its personality is not modelled\n";
    assert_eq!((ended.exit, ended.stdout.as_str(), ended.stderr.as_str()), (Some(2), "", line));
    let ended = mirror(&["--", "setarch", "--addr-compat-layout", "true"]).unwrap();
    let line = "pervma: setarch uses personality, which is not modelled\n";
    assert_eq!((ended.exit, ended.stderr.as_str()), (Some(2), line));
}

/// A program that is traced can trace none: it says so, and what it runs is not run.
#[test]
fn where_nothing_can_be_traced_it_says_so() {
    let exe = env!("CARGO_BIN_EXE_pervma");
    let Some(ended) = mirror(&["--", exe, "mirror", "--", "echo", "never"]) else { return };
    assert_eq!(ended.exit, Some(2));
    assert!(ended.stderr.starts_with("pervma: no program can be traced here: "));
    assert!(!ended.stdout.contains("never"));
}

#[test]
fn the_unprivileged_can_mirror_too() {
    let is_root = fs::metadata("/proc/self").is_ok_and(|_| Path::new("/usr/bin/setpriv").exists());
    let mut command = Command::new("setpriv");
    // A folder that others may read.
    let folder = tempfile::TempDir::new().unwrap();
    let copy = folder.path().join("pervma");
    fs::copy(env!("CARGO_BIN_EXE_pervma"), &copy).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).unwrap();
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(&copy).args(["mirror", "--json", "--", "sh", "-c", "ls / | wc -l"]);
    let ended = run(command);
    if !is_root || ended.exit != Some(0) && ended.stderr.starts_with("setpriv: ") {
        println!("NOT RUN: this user can become no other");
        return;
    }
    if mirror(&["--", "true"]).is_some() {
        assert_eq!(ended.exit, Some(0), "{}", ended.stderr);
        assert_eq!(count(&json(&ended), "divergences"), 0);
    }
}
