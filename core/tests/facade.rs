//! An atomic operation that bypasses the ledger does not compile.
//!
//! The facade is compiled by itself, with one line of use behind it: once with an edge of the
//! ledger, which must compile, and once with a bare ordering, which must not.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

/// Compiles the facade and the ledger with `line` behind them; the compiler's errors, if any.
fn compile(name: &str, line: &str) -> Result<(), String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let program = format!(
        r#"
        #![allow(dead_code, unused_imports, unused_macros)]
        #[path = {facade:?}] mod facade;
        #[path = {ledger:?}] mod ledger;
        // What the facade's mmap lock needs of the rest of the crate, and of lock_api.
        mod platform {{ pub unsafe trait Platform {{ type Lock: crate::lock_api::RawRwLock; }} }}
        extern crate self as lock_api;
        pub unsafe trait RawRwLock {{ const INIT: Self; }}
        pub struct RwLock<R, T>(R, T);
        pub struct RwLockReadGuard<'a, R, T>(&'a RwLock<R, T>);
        pub struct RwLockWriteGuard<'a, R, T>(&'a RwLock<R, T>);
        impl<R, T> RwLock<R, T> {{
            pub const fn const_new(lock: R, value: T) -> Self {{ Self(lock, value) }}
            pub fn read(&self) -> RwLockReadGuard<'_, R, T> {{ RwLockReadGuard(self) }}
            pub fn write(&self) -> RwLockWriteGuard<'_, R, T> {{ RwLockWriteGuard(self) }}
            pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, R, T>> {{ Some(self.write()) }}
        }}
        impl<'a, R, T> RwLockWriteGuard<'a, R, T> {{
            pub fn downgrade(guard: Self) -> RwLockReadGuard<'a, R, T> {{ RwLockReadGuard(guard.0) }}
        }}
        pub fn line(word: &facade::AtomicU32) {{ {line} }}
        "#,
        facade = src.join("facade/mod.rs"),
        ledger = src.join("ledger.rs"),
    );
    let file = dir.join("program.rs");
    std::fs::write(&file, program).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--crate-name=probe"])
        .arg("--out-dir")
        .arg(&dir)
        .arg(&file)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn a_named_edge_or_a_reason_compiles() {
    compile("named", "word.load(ledger::EXCLUDE_WAIT); word.store(1, ledger::ATTACH_PUBLISH);")
        .unwrap();
    compile("relaxed", "word.load(facade::Relaxed(\"a reason\"));").unwrap();
}

#[test]
fn a_bare_ordering_does_not() {
    let bare = "word.load(core::sync::atomic::Ordering::Acquire);";
    let errors = compile("bare", bare).unwrap_err();
    assert!(errors.contains("LoadOrder` is not satisfied"), "{errors}");
}

#[test]
fn a_relaxed_access_without_a_reason_does_not() {
    let errors = compile("reason", "word.load(facade::Relaxed);").unwrap_err();
    assert!(errors.contains("LoadOrder` is not satisfied"), "{errors}");
}

#[test]
fn an_edge_of_the_wrong_kind_does_not() {
    let errors = compile("kind", "word.load(ledger::ATTACH_PUBLISH);").unwrap_err();
    assert!(errors.contains("LoadOrder` is not satisfied"), "{errors}");
    let errors = compile("fence", "facade::fence(facade::Relaxed(\"?\"));").unwrap_err();
    assert!(errors.contains("FenceOrder` is not satisfied"), "{errors}");
}

#[test]
fn the_atomic_behind_the_facade_is_out_of_reach() {
    let errors =
        compile("inner", "word.0.load(core::sync::atomic::Ordering::Acquire);").unwrap_err();
    assert!(errors.contains("private"), "{errors}");
}
