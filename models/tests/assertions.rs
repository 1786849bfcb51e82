//! Each message of a model's assertions is the one by which a mutant of that model must fail.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;

/// Assertions that no mutant can reach, and why they stay.
const UNREACHED: &[(&str, &str, &str)] = &[
    (
        "two_removals",
        "LOST",
        "two threads that take one payload race for it: a mutant fails by that or by the lock's check",
    ),
    (
        "three_ways",
        "LOST",
        "two threads that change one payload race for it: a mutant fails by that or by the lock's check",
    ),
    (
        "reserve",
        "UNMAPPED",
        "the reservation and its VMA are one entry of the tree, which no step removes",
    ),
];

/// The names of the messages in a piece of source.
fn messages<'t>(text: &'t str, defined: &BTreeSet<&str>) -> BTreeSet<&'t str> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
    words.filter(|word| defined.contains(word)).collect()
}

/// Messages that no mutant of their model fails by, and messages that no mutant fails by at all.
fn unkilled(files: &[String]) -> Vec<(String, String)> {
    let all = files.concat();
    let code: Vec<_> = all.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let constants = code.split("const ").skip(1);
    let mut left: BTreeSet<_> = constants
        .filter_map(|rest| Some(rest.split_once(": &str =")?.0))
        .filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    let defined = left.clone();
    let mut unkilled = Vec::new();
    for model in code.split(": Model = Model {").skip(1) {
        let (run, mutants) = model.split("\n};").next().unwrap().split_once("mutants: ").unwrap();
        let name = run.split("name: \"").nth(1).unwrap().split('"').next().unwrap();
        let killing = messages(mutants, &defined);
        let said = messages(run.split_once("run: ").unwrap().1, &defined);
        unkilled.extend(said.difference(&killing).map(|&said| (name.to_owned(), said.to_owned())));
        left.retain(|message| !killing.contains(message));
    }
    unkilled.extend(left.into_iter().map(|message| ("any".to_owned(), message.to_owned())));
    unkilled
}

#[test]
fn each_message_is_one_that_a_mutant_fails_by() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/models");
    let files = fs::read_dir(dir).unwrap();
    let files: Vec<_> =
        files.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let mut found = unkilled(&files);
    let excused = |(model, message): &(String, String)| {
        let because = |(m, said, why): &(&str, &str, &str)| {
            (m == model || model == "any") && said == message && why.len() > 30
        };
        UNREACHED.iter().any(because)
    };
    found.retain(|unkilled| !excused(unkilled));
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_message_that_no_mutant_fails_by_is_found() {
    let text = r#"
const ONE: &str = "one";
const TWO: &str = "two";
const HELPED: &str = "three";
pub(crate) const M: Model = Model {
    name: "m",
    run: || {
        assert!(true, "{ONE}");
        assert!(true, "{TWO}");
    },
    mutants: &[weaken("X", ONE)],
};
"#;
    let pair = |model: &str, message: &str| (model.to_owned(), message.to_owned());
    let expected = [pair("m", "TWO"), pair("any", "HELPED"), pair("any", "TWO")];
    assert_eq!(unkilled(&[text.to_owned()]), expected);
}
