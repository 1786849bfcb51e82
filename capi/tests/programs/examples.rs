//! The examples, and a test of each function, in C and C++: against both libraries, and under the
//! sanitizers that the compiler has.

use std::path::Path;
use std::process::Command;

use crate::build::{Library, Panic, compile, compiler, libraries, supports, text};

/// What a program exits with where the system refuses userfaultfd.
pub(crate) const REFUSED: i32 = 77;

fn run(
    source: &str,
    library: (Library<'_>, Panic),
    options: &[&str],
    environment: &[(&str, &str)],
) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    if compile(source, library, options, &program).is_none() {
        return;
    }
    let mut command = Command::new(&program);
    command.envs(environment.iter().copied());
    let said = command.output().expect("the program runs");
    if said.status.code() == Some(REFUSED) {
        println!("NOT RUN: {source}: {}", text(&said).trim_end());
        return;
    }
    assert!(said.status.success() && said.stdout.ends_with(b"ok\n"), "{source}: {}", text(&said));
}

/// With each library.
fn run_linked(source: &str) {
    for library in [Library::Static, Library::Shared] {
        run(source, (library, Panic::Unwind), &[], &[]);
        run(source, (library, Panic::Abort), &[], &[]);
    }
}

/// With each library, and under AddressSanitizer.
fn run_all(source: &str) {
    run_linked(source);
    let Some(compiler) = compiler(source) else { return };
    let options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    if supports(compiler, &options) {
        // The handlers are the program's and the library's.
        let environment = [("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0")];
        run(source, (Library::Static, Panic::Unwind), &options, &environment);
    } else {
        println!("NOT RUN: {source} with {options:?}: {compiler} has none, or the machine");
    }
}

#[test]
fn recompiler() {
    run_all("examples/recompiler.c");
}

#[test]
fn registration_cache() {
    run_all("examples/registration_cache.cpp");
}

#[test]
fn paged_source() {
    run_all("examples/paged_source.c");
}

#[test]
fn each_function() {
    run_all("tests/c/api.c");
}

#[test]
fn each_function_of_regions() {
    run_all("tests/c/regions.c");
}

/// With UMap's settings, in each mode: pages of the kernel's, larger ones, and one that is no power
/// of two.
#[test]
fn umap() {
    const ALL: &[(&str, &str)] = &[
        ("thread", "4096"),
        ("thread", "65536"),
        ("thread", "12288"),
        ("signal", "4096"),
        ("signal", "65536"),
    ];
    let source = "tests/c/umap.cpp";
    let Some(compiler) = compiler(source) else { return };
    // Its stores throw.
    let (plain, sanitized) = (["-fexceptions"], ["-fexceptions", "-fsanitize=address,undefined"]);
    let mut builds = vec![(Panic::Unwind, &plain[..], ALL), (Panic::Abort, &plain, &ALL[..1])];
    if supports(compiler, &sanitized) {
        builds.push((Panic::Unwind, &sanitized, &ALL[1..4]));
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (number, (panic, options, settings)) in builds.into_iter().enumerate() {
        let program = folder.path().join(format!("program-{number}"));
        compile(source, (Library::Static, panic), options, &program).expect("a compiler");
        for (mode, page) in settings {
            let files = tempfile::tempdir().expect("a folder");
            let mut command = Command::new(&program);
            command.arg(files.path()).env("PERVMA_UMAP_MODE", mode).env("UMAP_PAGESIZE", page);
            command.env("UMAP_BUFSIZE", "16").env("UMAP_PAGE_FILLERS", "2");
            let said = command.env("ASAN_OPTIONS", "handle_sigbus=0").output().expect("it runs");
            if said.status.code() == Some(REFUSED) {
                println!("NOT RUN: {source} in {mode} mode: {}", text(&said).trim_end());
                continue;
            }
            let passed = said.status.success() && said.stdout.ends_with(b"ok\n");
            assert!(passed, "{mode}, pages of {page}, {options:?}: {}", text(&said));
        }
        // One line, and no more.
        let mut command = Command::new(&program);
        let said = command.arg("/").env("UMAP_PAGESIZE", "5000").output().expect("it runs");
        assert_eq!(said.status.code(), Some(1), "{}", text(&said));
        assert_eq!(said.stderr, b"umap: UMAP_PAGESIZE is no multiple of 4096: 5000\n");
    }
}

/// Not under sanitizers: a child of fork can find their allocator locked by a thread that it does
/// not have (seen with gcc 12).
#[test]
fn forks() {
    run_linked("tests/c/fork.c");
}

/// It has thread-local memory at once.
#[test]
#[cfg(all(target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = ("tests/c/loaded.c", folder.path().join("program"));
    if compile(source, (Library::Loaded, Panic::Unwind), &[], &program).is_none() {
        return;
    }
    let library = libraries(Panic::Unwind).join("libpervma.so");
    let said = Command::new(&program).arg(library).output().expect("the program runs");
    assert!(said.status.success() && said.stdout == b"ok\n", "{}", text(&said));
}

/// The library is instrumented, too, or what it orders would look like races.
#[test]
#[ignore = "needs a library that nightly has built with ThreadSanitizer: `.ci/races`"]
fn thread_sanitizer() {
    let library = std::env::var("PERVMA_TSAN_LIBRARY").expect("the path of the library");
    let environment = [("TSAN_OPTIONS", "handle_segv=0:handle_sigbus=0:exitcode=1")];
    let folder = tempfile::tempdir().expect("a folder");
    let run = |source: &str| {
        let program = folder.path().join("program");
        let library = Library::Given(Path::new(&library));
        compile(source, (library, Panic::Unwind), &["-fsanitize=thread"], &program)
            .expect("the compilers are there");
        Command::new(&program).envs(environment).output().expect("the program runs")
    };
    for source in [
        "examples/recompiler.c",
        "examples/registration_cache.cpp",
        "examples/paged_source.c",
        "tests/c/api.c",
    ] {
        let said = run(source);
        let passed = said.status.success() && said.stdout.ends_with(b"ok\n");
        assert!(passed || said.status.code() == Some(REFUSED), "{source}: {}", text(&said));
    }
    let said = run("tests/c/race.c");
    assert!(text(&said).contains("ThreadSanitizer: data race"), "planted: {}", text(&said));
}
