//! Bad input, from C: an error code, or one line and an abort.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::build::{Library, Panic, compile, text};
use crate::examples::REFUSED;

fn run(program: &Path, case: &str) -> Output {
    Command::new(program).arg(case).output().expect("the program runs")
}

#[test]
fn what_c_programmers_get_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("misuse");
    for panic in [Panic::Unwind, Panic::Abort] {
        let library = (Library::Static, panic);
        if compile("tests/c/misuse.c", library, &[], &program).is_none() {
            return;
        }
        for case in [
            "nulls",
            "ranges",
            "stale_handles",
            "guards",
            "other_threads",
            "destroy_with_a_guard",
            "edits",
            "edits_of_the_dead",
            "handlers",
            "handler_in_a_callback",
            "regions",
            "regions_in_their_sources",
            "exclusions_in_handlers",
            "forks",
        ] {
            let said = run(&program, case);
            if said.status.code() == Some(REFUSED) {
                println!("NOT RUN: {case}: {}", text(&said).trim_end());
                continue;
            }
            let passed = said.status.success() && said.stdout.ends_with(b"ok\n");
            assert!(passed, "{case}, {panic:?}: {}", text(&said));
            assert!(said.stderr.is_empty(), "{case}, {panic:?}: no panic: {}", text(&said));
        }
        let said = run(&program, "longjmp_out_of_a_callback");
        aborts_by(&said, "pervma: a callback was left by longjmp, which pervma.h forbids");
    }
}

fn aborts_by(said: &Output, line: &str) {
    let lines: Vec<_> = std::str::from_utf8(&said.stderr).expect("text").lines().collect();
    assert_eq!(lines, [line], "{}", text(said));
    assert_eq!(said.status.signal(), Some(6), "{}", text(said));
    assert!(said.stdout.is_empty(), "{}", text(said));
}

#[test]
fn an_exception_out_of_a_callback() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("exception");
    let source = "tests/c/exception.cpp";
    for panic in [Panic::Unwind, Panic::Abort] {
        if compile(source, (Library::Static, panic), &["-fexceptions"], &program).is_none() {
            return;
        }
        let said = run(&program, "");
        match panic {
            Panic::Unwind => aborts_by(
                &said,
                "pervma: a callback was left by an exception, which pervma.h forbids",
            ),
            // With what Rust says.
            Panic::Abort => assert_eq!(said.status.signal(), Some(6), "{}", text(&said)),
        }
    }
}
