//! The page of published bugs has a row for each, and each model, test or item that a row names
//! exists. Models and tests carry the numbers of their bugs.

use std::collections::BTreeSet;
use std::fs;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The lines above the definition of `item` in `text` that belong to it, and the definition.
fn definition<'t>(text: &'t str, item: &str) -> Option<Vec<&'t str>> {
    let lines: Vec<_> = text.lines().collect();
    let defines = |line: &str| {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let kind = words.any(|word| matches!(word, "fn" | "struct" | "trait" | "const"));
        kind && words.next() == Some(item)
    };
    let at = lines.iter().position(|line| defines(line))?;
    let own =
        |line: &&str| line.trim_start().starts_with("///") || line.trim_start().starts_with("#[");
    let above = lines[..at].iter().rev().take_while(|line| own(line)).count();
    Some(lines[at - above..=at].to_vec())
}

#[test]
fn every_bug_has_its_row_and_what_the_row_names_exists() {
    let page = fs::read_to_string(format!("{ROOT}/docs/known-bugs.md")).unwrap();
    let mut numbers = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| B")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let ["", bug, what, here, shown_by, ""] = cells[..] else { panic!("not a row: {row}") };
        assert!(!what.is_empty() && !here.is_empty(), "{bug}");
        let number: usize = bug[1..].trim_end_matches(char::is_alphabetic).parse().unwrap();
        numbers.insert(number);
        assert!(!shown_by.is_empty(), "nothing shows {bug}");
        for name in shown_by.split(", ") {
            let (file, item) = name.trim_matches('`').split_once("::").unwrap();
            let text = fs::read_to_string(format!("{ROOT}/{file}")).unwrap();
            let definition = definition(&text, item).unwrap_or_else(|| panic!("no {name}"));
            let is = |what: &str| definition.iter().any(|line| line.contains(what));
            if is(": Model = Model {") || is("#[test]") {
                let carries =
                    |line: &&str| line.split(|c: char| !c.is_alphanumeric()).any(|w| w == bug);
                assert!(definition.iter().any(carries), "{name} does not carry the number {bug}");
            }
        }
    }
    assert!(numbers.iter().copied().eq(1..=36), "{numbers:?}");
}

#[test]
fn a_name_that_is_not_defined_is_not_found() {
    let text = "/// B7. What for.\n#[test]\nfn one() {}\n\nconst TWO: u32 = one_more();\n";
    assert_eq!(definition(text, "one"), Some(vec!["/// B7. What for.", "#[test]", "fn one() {}"]));
    assert_eq!(definition(text, "TWO"), Some(vec!["const TWO: u32 = one_more();"]));
    assert_eq!(definition(text, "one_more"), None);
}
