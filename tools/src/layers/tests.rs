//! One violation of each kind, planted in a small crate of its own.

use std::fs;
use std::path::Path;

use super::check;
use super::list::Claims;
use super::packages;
use super::source::Crate;
use crate::workspace::Workspace;

/// In the order of these files, `low` uses nothing.
const ORDER: &[&str] = &["low", "middle", "high", "lib"];

/// What is wrong in a crate of `files`, beside the roots `low`, `middle` and `high` that are empty
/// if they are not given.
fn findings(order: &[&str], files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("package");
    let mut all = vec![
        ("lib.rs", "mod low;\nmod middle;\nmod high;\n"),
        ("low.rs", ""),
        ("middle.rs", "pub fn made() {}\n"),
        (
            "high.rs",
            "pub struct Thing;\npub fn made() {}\n#[macro_export] macro_rules! thing { () => {} }\n",
        ),
    ];
    all.retain(|(name, _)| !files.iter().any(|(given, _)| given == name));
    for (name, text) in all.iter().chain(files) {
        let path = package.join("src").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let page = format!("```layers packages\na\n```\n```layers p\n{}\n```\n", order.join("\n"));
    let claims = Claims::read(&page).unwrap();
    let source = Crate::read(&package.join("src/lib.rs")).unwrap();
    check::check(&claims.orders["p"], &[source], &package)
}

/// The only finding is that `low` uses `high`, at this line and by this path.
#[track_caller]
fn found(text: &str, line: usize, path: &str) {
    let wrong = findings(ORDER, &[("low.rs", text)]);
    let [only] = wrong.as_slice() else { panic!("{wrong:?}") };
    assert!(only.starts_with("low uses high, which is on a later line:"), "{only}");
    assert!(only.contains(&format!("package/src/low.rs:{line}: {path}")), "{only}");
}

#[track_caller]
fn nothing(text: &str) {
    assert_eq!(findings(ORDER, &[("low.rs", text)]), [""; 0]);
}

#[test]
fn imports_are_found_however_they_are_written() {
    found("use crate::high::Thing;", 1, "crate::high::Thing");
    found("use crate::{\n    high::{self as other, Thing},\n};", 1, "crate::high");
    found("use super::high;", 1, "super::high");
    found("use super::{high as low_enough};", 1, "super::high");
    found("use crate::high::*;", 1, "crate::high");
    found("\npub use crate::high::Thing;", 2, "crate::high::Thing");
    found("pub(crate) use super::high::{Thing as _};", 1, "super::high::Thing");
    found("fn f() {\n    use crate::high::Thing;\n}", 2, "crate::high::Thing");
}

#[test]
fn paths_in_the_middle_of_code_are_found() {
    found("fn f() {\n    let _ = crate::high::made();\n}", 2, "crate::high::made");
    found("fn f(_: &super::high::Thing) {}", 1, "super::high::Thing");
    found("fn f() -> Vec<crate::high::Thing> { Vec::new() }", 1, "crate::high::Thing");
    found("impl<T: Into<crate::high::Thing>> From<T> for Low<T> {}", 1, "crate::high::Thing");
    found("fn f() {\n    Vec::<crate::high::Thing>::new();\n}", 2, "crate::high::Thing");
    found("const N: [u8; crate::high::LEN] = [];", 1, "crate::high::LEN");
    found("fn f(x: X) { match x { crate::high::Thing => {} } }", 1, "crate::high::Thing");
}

#[test]
fn paths_in_macros_are_found() {
    found("fn f() {\n    println!(\"{}\", crate::high::made());\n}", 2, "crate::high::made");
    found("wrap! {\n    [use crate::{low, high::Thing};]\n}", 2, "crate::high::Thing");
    found("wrap! {\n    struct Low { of: crate::high::Thing }\n}", 2, "crate::high::Thing");
    found("fn f() { wrap!(a.b, 0..crate::high::made(), 'a) }", 1, "crate::high::made");
    found("macro_rules! m {\n    () => { $crate::high::made() };\n}", 2, "crate::high::made");
    found("fn f() {\n    crate::thing!();\n}", 2, "crate::thing");
    found("fn f() {\n    thing!();\n}", 2, "thing");
}

#[test]
fn nested_modules_and_other_names_are_found() {
    found("mod inner {\n    use super::super::high;\n}", 2, "super::super::high");
    found(
        "mod inner {\n    mod more { fn f() { super::super::super::high::made() } }\n}",
        2,
        "super",
    );
    // By a name of the crate for itself, by one that the root re-exports, by a glob of all of it.
    let root = |text| ("lib.rs", text);
    let low = |text| ("low.rs", text);
    for files in [
        [
            root("extern crate self as me;\nmod low; mod middle; mod high;"),
            low("use me::high::Thing;"),
        ],
        [root("mod low; mod middle; mod high;\npub use high::Thing;"), low("use crate::Thing;")],
        [
            root("mod low; mod middle; mod high;\nuse self::high as top;"),
            low("use super::top::Thing;"),
        ],
        [
            root("mod low; mod middle; mod high;\nuse high::Thing;"),
            low("use super::*;\nstruct L(Thing);"),
        ],
        [
            root("mod low; mod middle; mod high;\nuse high::*;"),
            low("use super::*;\nstruct L(Thing);"),
        ],
    ] {
        let wrong = findings(ORDER, &files);
        // The glob of the root is a use of the root, too.
        assert!(
            wrong.iter().any(|wrong| wrong.starts_with("low uses high,")),
            "{files:?}: {wrong:?}"
        );
    }
}

#[test]
fn a_module_at_another_path_is_found() {
    let at = [
        ("lib.rs", "mod low;\nmod middle;\nmod high;\n#[path = \"elsewhere/x.rs\"]\nmod named;\n"),
        ("elsewhere/x.rs", "use crate::high::Thing;\n"),
    ];
    let order = ["low", "elsewhere/x", "middle", "high", "lib"];
    let wrong = findings(&order, &at);
    assert!(wrong.len() == 1 && wrong[0].starts_with("elsewhere/x uses high"), "{wrong:?}");
    // Both files that a module can be.
    let either = [
        ("lib.rs", "#[cfg_attr(windows, path = \"other.rs\")]\nmod low;\nmod middle;\nmod high;\n"),
        ("other.rs", "use crate::high::Thing;\n"),
    ];
    let wrong = findings(&["low, other", "middle", "high", "lib"], &either);
    assert!(wrong.len() == 1 && wrong[0].starts_with("other uses high"), "{wrong:?}");
}

#[test]
fn re_exports_on_the_way_are_used_too() {
    let files = [
        ("lib.rs", "mod low;\nmod middle;\nmod high;\nmod top;\n"),
        ("top.rs", "pub use crate::high::Thing;\n"),
        ("middle.rs", "use crate::top::Thing;\n"),
    ];
    let wrong = findings(&["low", "high", "middle", "top", "lib"], &files);
    assert!(wrong.len() == 1 && wrong[0].starts_with("middle uses top"), "{wrong:?}");
}

#[test]
fn tests_are_left_out_and_nothing_else_is() {
    nothing("#[cfg(test)]\nuse crate::high::Thing;");
    nothing("#[cfg(all(test, unix))]\nmod tests {\n    use crate::high::Thing;\n}");
    nothing("#![cfg(test)]\nuse crate::high::Thing;");
    nothing("fn f() {\n    #[cfg(test)]\n    crate::high::made();\n}");
    nothing("struct L {\n    #[cfg(test)]\n    thing: crate::high::Thing,\n}");
    nothing("impl L {\n    #[cfg(not(not(test)))]\n    fn f() { crate::high::made() }\n}");
    found("#[cfg(any(test, unix))]\nuse crate::high::Thing;", 2, "crate::high::Thing");
    found("#[cfg(not(test))]\nuse crate::high::Thing;", 2, "crate::high::Thing");
    // The attribute is the first item's, not the file's.
    found("#[cfg(test)]\nmod tests {}\nuse crate::high::Thing;", 3, "crate::high::Thing");
    let files = [
        ("low.rs", "#[cfg(test)]\nmod tests;\n"),
        ("low/tests.rs", "use crate::high::Thing;\nmod more;\n"),
        ("low/tests/more.rs", ""),
    ];
    assert_eq!(findings(ORDER, &files), [""; 0]);
}

#[test]
fn what_only_looks_like_a_use_is_none() {
    nothing(
        "// use crate::high::Thing;\n/// [`crate::high::Thing`]\npub(in crate::high) fn f() {}",
    );
    nothing("fn f(high: u8) -> u8 { high + wrap!(x.high, $high, \"crate::high\") }");
    nothing("use ::high::Thing;\nuse other::high;\nuse std::fmt;");
    let root = ("lib.rs", "mod low; mod middle; mod high;\nfn f(low: u8) -> u8 { low }");
    assert_eq!(findings(ORDER, &[root]), [""; 0]);
}

#[test]
fn circles_on_one_line_are_found_unless_the_line_says_so() {
    let files = [("low.rs", "use crate::middle;"), ("middle.rs", "use crate::low;")];
    let wrong = findings(&["low, middle", "high", "lib"], &files);
    assert!(wrong.len() == 1 && wrong[0].starts_with("a circle of low, middle:"), "{wrong:?}");
    assert_eq!(findings(&["low <-> middle", "high", "lib"], &files), [""; 0]);
    // Longer than two, and one that is stated and not there.
    let three = [
        ("low.rs", "use crate::middle;"),
        ("middle.rs", "use crate::high;"),
        ("high.rs", "use crate::low;"),
    ];
    let wrong = findings(&["low, middle, high", "lib"], &three);
    assert!(
        wrong.len() == 1 && wrong[0].starts_with("a circle of low, middle, high:"),
        "{wrong:?}"
    );
    let wrong = findings(&["low <-> middle", "high", "lib"], &[]);
    assert_eq!(wrong, ["low <-> middle: there is no such circle"]);
}

#[test]
fn circles_within_a_folder_are_found_unless_its_line_says_so() {
    let files = [
        ("low.rs", "mod part;\nuse part::Part;\npub struct Whole(Part);"),
        ("low/part.rs", "pub struct Part(Box<super::Whole>);"),
    ];
    let wrong = findings(ORDER, &files);
    assert!(wrong.len() == 1 && wrong[0].starts_with("a circle of low, low/part:"), "{wrong:?}");
    assert_eq!(findings(&["low <-> low", "middle", "high", "lib"], &files), [""; 0]);
    // What a folder shows of its own files, it does not use.
    let shown = [
        ("low.rs", "mod part;\npub use part::Part;\npub struct Whole;"),
        ("low/part.rs", "pub struct Part(super::Whole);"),
    ];
    assert_eq!(findings(ORDER, &shown), [""; 0]);
}

#[test]
fn the_list_and_the_files_are_the_same() {
    assert_eq!(
        findings(&["low", "high", "lib"], &[]),
        ["package/src/middle.rs: no line of the layers names middle"]
    );
    assert_eq!(
        findings(&["low", "middle", "higher, high", "lib"], &[]),
        ["the layers name higher, and there is no such file"]
    );
    assert_eq!(
        findings(&["low", "middle", "low", "high", "lib"], &[]),
        ["the layers name low twice"]
    );
    assert_eq!(
        findings(ORDER, &[("forgotten.rs", "")]),
        ["package/src/forgotten.rs: no module is this file's"]
    );
}

#[test]
fn a_folder_stands_in_one_place() {
    let files = [("high.rs", "mod part;\npub struct Thing;\n"), ("high/part.rs", "")];
    assert_eq!(
        findings(&["low", "high/part", "middle", "high", "lib"], &files),
        ["the folder high stands on both sides of middle"]
    );
    assert_eq!(findings(&["low", "middle", "high/part", "high", "lib"], &files), [""; 0]);
}

#[test]
fn arrows_between_packages_are_what_is_claimed() {
    let metadata = |name: &str, on: &str, kind: &str| {
        format!(
            r#"{{ "name": "{name}", "manifest_path": "/x/{name}/Cargo.toml", "targets": [],
                "dependencies": [{{ "name": "{on}", "kind": {kind}, "path": "/x/{on}" }}] }}"#
        )
    };
    let above = metadata("above", "below", "null");
    let below = metadata("below", "judge", "\"dev\"");
    let judge = r#"{ "name": "judge", "manifest_path": "/x", "targets": [], "dependencies": [] }"#;
    let json = format!(r#"{{ "packages": [{above}, {below}, {judge}] }}"#);
    let workspace: Workspace = serde_json::from_str(&json).unwrap();
    let wrong = |block: &str| {
        let page = format!("```layers a\nlib\n```\n```layers packages\n{block}\n```\n");
        packages::check(&Claims::read(&page).unwrap(), &workspace)
    };
    assert_eq!(wrong("judge\nbelow -> (judge)  lower\nabove -> below  upper"), [""; 0]);
    assert_eq!(
        wrong("judge\nbelow\nabove -> below"),
        ["below is claimed to have no arrow, and has -> (judge)"]
    );
    assert_eq!(
        wrong("judge\nbelow -> (judge)\nabove -> below, judge"),
        ["above is claimed to have -> below, judge, and has -> below"]
    );
    assert_eq!(
        wrong("judge\nabove -> below\nbelow -> (judge)"),
        ["above uses below, which is on a later line"]
    );
    assert_eq!(
        wrong("judge\nbelow -> (judge)\nabove -> below\nother"),
        ["the packages name other, and there is no such package"]
    );
    assert_eq!(wrong("below -> (judge)\nabove -> below"), ["no line of the packages names judge"]);
}

#[test]
fn the_page_of_this_workspace_can_be_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let claims = Claims::read(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap()).unwrap();
    let names: Vec<_> = claims.orders.keys().map(String::as_str).collect();
    assert!(names.contains(&"pervma") && names.contains(&"pervma-tools"), "{names:?}");
}
