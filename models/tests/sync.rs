//! `core/src/sync` accepts nothing but edges of the ledger, and gives each the ordering that the
//! ledger states: an atomic operation that bypasses the ledger does not compile, and the orderings
//! of what compiles are read in LLVM's intermediate code.
//!
//! The module is compiled by itself, as it is shipped, with code that uses it appended.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use pervma_models::internals::ledger::{EDGES, Kind, Ordering};

/// The ledger, and the module as it is shipped.
const FILES: [&str; 9] = [
    "step.rs",
    "ledger.rs",
    "sync/mod.rs",
    "sync/atomic.rs",
    "sync/const_fn.rs",
    "sync/order.rs",
    "sync/plain.rs",
    "sync/real.rs",
    "sync/wait_word.rs",
];

/// A planted fault: a file of the module, a piece of it, and what replaces that.
type Plant = (&'static str, &'static str, &'static str);

/// Compiles the module and the ledger with `items` appended; returns LLVM's code, or the compiler's
/// errors.
fn compile(name: &str, items: &str, plant: Option<Plant>) -> Result<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(dir.join("sync")).unwrap();
    for file in FILES {
        let mut text = fs::read_to_string(src.join(file)).unwrap();
        if let Some((_, from, to)) = plant.filter(|plant| plant.0 == file) {
            assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
            text = text.replace(from, to);
        }
        fs::write(dir.join(file), text).unwrap();
    }
    let program = format!(
        r#"
        #![allow(dead_code, unused_imports, unused_macros, non_snake_case)]
        mod ledger;
        mod step;
        mod sync;
        {items}
        "#,
    );
    let file = dir.join("program.rs");
    fs::write(&file, program).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=lib", "--emit=llvm-ir", "--crate-name=probe"])
        .args(["-O", "-Ccodegen-units=1", "--out-dir"])
        .arg(&dir)
        .arg(&file)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(fs::read_to_string(dir.join("probe.ll")).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Compiles one line that uses the module.
fn line(name: &str, line: &str) -> Result<(), String> {
    let item = format!("pub fn line(word: &sync::AtomicU32) {{ {line} }}");
    compile(name, &item, None).map(drop)
}

/// The operations of the module: kind, atomic type, a call (on the word `a`, with the edge `E` and
/// a number `N` that makes each function different), how many orderings its code names.
const OPERATIONS: &[(Kind, &str, &str, usize)] = &[
    (Kind::Load, "AtomicU32", "u64::from(a.load(E)) + N", 1),
    (Kind::Load, "AtomicU64", "a.load(E) ^ N", 1),
    (Kind::Load, "AtomicUsize", "a.load(E) as u64 ^ N", 1),
    (Kind::Store, "AtomicU32", "{ a.store(N, E); N }", 1),
    (Kind::Store, "AtomicU64", "{ a.store(N, E); N }", 1),
    (Kind::Store, "AtomicUsize", "{ a.store(N, E); N }", 1),
    (Kind::Rmw, "AtomicU32", "u64::from(a.fetch_add(N, E))", 1),
    (Kind::Rmw, "AtomicU32", "u64::from(a.fetch_sub(N, E))", 1),
    (Kind::Rmw, "AtomicU32", "u64::from(a.swap(N, E))", 1),
    (Kind::Rmw, "AtomicU32", "u64::from(a.fetch_or(N, E))", 1),
    (Kind::Rmw, "AtomicU32", "u64::from(a.compare_exchange(0, N, E).is_ok())", 2),
    (Kind::Rmw, "AtomicU32", "u64::from(a.compare_exchange_weak(0, N, E).is_ok())", 2),
    (Kind::Rmw, "AtomicU64", "u64::from(a.compare_exchange(0, N, E).is_ok())", 2),
    (Kind::Rmw, "AtomicUsize", "u64::from(a.compare_exchange(0, N, E).is_ok())", 2),
    (Kind::Fence, "AtomicU32", "{ sync::fence(E); u64::from(a.load(sync::Relaxed(\"\"))) ^ N }", 2),
];

/// The edges and relaxed accesses whose orderings in LLVM's code are wrong.
fn wrong_orderings(name: &str, plant: Option<Plant>) -> Vec<String> {
    let mut items = String::new();
    let mut expected = Vec::new();
    let mut add = |edge: String, (_, atomic, call, named): &(Kind, &str, &str, usize), ordering| {
        let number = expected.len() + 1;
        let call = call.replace('N', &number.to_string()).replace("E)", &format!("{edge})"));
        let item = format!("pub fn f{number}(a: &sync::{atomic}) -> u64 {{ {call} }}");
        writeln!(items, "#[unsafe(no_mangle)] {item}").unwrap();
        // A failed exchange is relaxed, and so is the load behind a fence.
        let orderings = [ordering, "monotonic"].into_iter().take(*named).collect::<Vec<_>>();
        expected.push((format!("{edge}: {call}"), orderings));
    };
    for operation in OPERATIONS {
        for edge in EDGES.iter().filter(|edge| edge.kind == operation.0) {
            let ordering = match edge.ordering {
                Ordering::Acquire => "acquire",
                Ordering::Release => "release",
                Ordering::SeqCst => "seq_cst",
                other => panic!("{other:?}"),
            };
            add(format!("ledger::{}", edge.name), operation, ordering);
        }
        if operation.0 != Kind::Fence {
            add("sync::Relaxed(\"\")".to_owned(), operation, "monotonic");
        }
    }
    let code = compile(name, &items, plant).unwrap();
    let mut wrong = Vec::new();
    for (number, (what, orderings)) in expected.into_iter().enumerate() {
        let start = format!("@f{}(", number + 1);
        let function = code.split("\ndefine ").find(|function| {
            function.lines().next().is_some_and(|signature| signature.contains(&start))
        });
        let body = function.unwrap_or_else(|| panic!("{what} has no code")).split("\n}").next();
        let words = body.unwrap().split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let all = ["unordered", "monotonic", "acquire", "release", "acq_rel", "seq_cst"];
        let found: Vec<_> = words.filter(|word| all.contains(word)).collect();
        if found != orderings {
            wrong.push(format!("{what}: {found:?}"));
        }
    }
    wrong
}

#[test]
fn every_edge_has_in_the_code_the_ordering_that_the_ledger_states() {
    assert_eq!(wrong_orderings("orderings", None), [""; 0]);
}

#[test]
fn a_module_that_weakens_is_noticed() {
    let stated = "    stated\n";
    let acquires = "    match stated { Ordering::Acquire => Ordering::Relaxed, other => other }\n";
    let wrong = wrong_orderings("acquire", Some(("sync/real.rs", stated, acquires)));
    let acquires = EDGES.iter().filter(|edge| edge.ordering == Ordering::Acquire);
    for edge in acquires.filter(|edge| edge.kind != Kind::Fence) {
        let name = format!("ledger::{}:", edge.name);
        assert!(wrong.iter().any(|wrong| wrong.starts_with(&name)), "{name} {wrong:?}");
    }

    let fence = "pub(super) use core::sync::atomic::fence;";
    let nothing = "pub(super) fn fence(_: Ordering) {}";
    let wrong = wrong_orderings("no_fence", Some(("sync/real.rs", fence, nothing)));
    let fences = EDGES.iter().filter(|edge| edge.kind == Kind::Fence);
    let expected: Vec<_> = fences.map(|edge| format!("ledger::{}:", edge.name)).collect();
    let found = wrong.iter().map(|wrong| wrong.split_inclusive(':').take(3).collect::<String>());
    assert!(found.eq(expected), "{wrong:?}");
}

#[test]
fn a_named_edge_or_a_reason_compiles() {
    line("named", "word.load(ledger::EXCLUDE_WAIT); word.store(1, ledger::ATTACH_PUBLISH);")
        .unwrap();
    line("relaxed", "word.load(sync::Relaxed(\"a reason\"));").unwrap();
}

#[test]
fn a_bare_ordering_does_not_compile() {
    let bare = "word.load(core::sync::atomic::Ordering::Acquire);";
    let errors = line("bare", bare).unwrap_err();
    assert!(errors.contains("LoadOrder` is not satisfied"), "{errors}");
}

#[test]
fn a_relaxed_access_without_a_reason_does_not_compile() {
    let errors = line("reason", "word.load(sync::Relaxed);").unwrap_err();
    assert!(errors.contains("LoadOrder` is not satisfied"), "{errors}");
}

#[test]
fn an_edge_of_the_wrong_kind_does_not_compile() {
    let errors = line("kind", "word.load(ledger::ATTACH_PUBLISH);").unwrap_err();
    assert!(errors.contains("LoadOrder` is not satisfied"), "{errors}");
    let errors = line("fence", "sync::fence(sync::Relaxed(\"?\"));").unwrap_err();
    assert!(errors.contains("FenceOrder` is not satisfied"), "{errors}");
}

#[test]
fn the_inner_atomic_is_private() {
    let errors = line("inner", "word.0.load(core::sync::atomic::Ordering::Acquire);").unwrap_err();
    assert!(errors.contains("private"), "{errors}");
}
