//! Programs in C and C++, compiled against the header and the libraries of this build.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The folder of this package.
pub(crate) fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What a panic does in a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Panic {
    Unwind,
    Abort,
}

/// The folder of the libraries, built on first use: cargo builds no library for tests that they
/// cannot link.
pub(crate) fn libraries(panic: Panic) -> &'static Path {
    static FOLDERS: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    FOLDERS[panic as usize].get_or_init(|| {
        let mut target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--package", "pervma-capi"]);
        cargo.current_dir(package());
        if panic == Panic::Abort {
            cargo.args(["--config", "profile.dev.panic=\"abort\""]);
            target.push("abort");
        } else {
            target.pop(); // where the rest of it was built
        }
        let said = cargo.arg("--target-dir").arg(&target).output().expect("cargo runs");
        assert!(said.status.success(), "{}", text(&said));
        target.join("debug")
    })
}

/// What a static library of Rust needs on Linux.
pub(crate) const SYSTEM: [&str; 4] = ["-pthread", "-lm", "-ldl", "-lgcc_s"];

/// What a program is linked with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library<'a> {
    Static,
    Shared,
    /// A static one that was built before, by nightly with ThreadSanitizer.
    Given(&'a Path),
    /// Nothing: the program loads it.
    Loaded,
}

/// The compiler of a source; says `NOT RUN` where there is none.
pub(crate) fn compiler(source: &str) -> Option<&'static str> {
    let compiler = if source.ends_with(".cpp") { "c++" } else { "cc" };
    if Command::new(compiler).arg("--version").output().is_ok_and(|said| said.status.success()) {
        return Some(compiler);
    }
    println!("NOT RUN: {source}: there is no {compiler}");
    None
}

/// Whether the compiler can make programs with these options, and the machine run them.
pub(crate) fn supports(compiler: &str, options: &[&str]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join("empty.c"), folder.path().join("empty"));
    std::fs::write(&source, "int main(void) { return 0; }\n").expect("a file");
    let mut command = Command::new(compiler);
    command.args(options).args(["-x", "c"]).arg(&source).arg("-o").arg(&program);
    command.output().is_ok_and(|said| said.status.success())
        && Command::new(&program).output().is_ok_and(|said| said.status.success())
}

/// Compiles a program; `None` where there is no compiler.
pub(crate) fn compile(
    source: &str,
    (library, panic): (Library<'_>, Panic),
    options: &[&str],
    program: &Path,
) -> Option<()> {
    let mut command = Command::new(compiler(source)?);
    command.args(["-Wall", "-Wextra", "-Werror", "-Wpedantic", "-O1", "-g", "-fno-exceptions"]);
    command.arg(if source.ends_with(".cpp") { "-std=c++11" } else { "-std=c11" });
    command.args(options).arg("-I").arg(package().join("include"));
    command.arg("-I").arg(package().join("umap"));
    command.arg(package().join(source)).arg("-o").arg(program);
    match library {
        Library::Static => {
            command.arg(libraries(panic).join("libpervma.a"));
        }
        Library::Loaded => {}
        Library::Given(library) => {
            // C, which a compiler of C++ takes for that by its name, and as C++ it is right too.
            command.arg(package().join("tests/c/tsan_memory.c")).arg(library);
        }
        Library::Shared => {
            // As it is found when the program runs, beside that.
            let folder = program.parent().expect("a folder");
            let name = concat!(
                "libpervma.so.",
                env!("CARGO_PKG_VERSION_MAJOR"),
                ".",
                env!("CARGO_PKG_VERSION_MINOR")
            );
            let link = folder.join(name);
            std::os::unix::fs::symlink(libraries(panic).join("libpervma.so"), &link)
                .expect("a link");
            command.arg(link).arg(format!("-Wl,-rpath,{}", folder.display()));
        }
    }
    let said = command.args(SYSTEM).output().expect("the compiler runs");
    assert!(said.status.success(), "{command:?}\n{}", text(&said));
    Some(())
}

/// All that a program has said.
pub(crate) fn text(said: &Output) -> String {
    format!(
        "{}\n{}{}",
        said.status,
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    )
}
