//! The ledger is complete: each edge names its other ends, which name it, and is one operation of
//! the source; every relaxed access has a reason; every argued ordering has a test.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;

use pervma_models::internals::STEPS;
use pervma_models::internals::ledger::{ARGUED, EDGES, Kind, Ordering};

#[test]
fn both_ends_of_every_edge_name_each_other() {
    for edge in EDGES {
        assert!(!edge.pairs.is_empty() && !edge.without.is_empty(), "{}", edge.name);
        for pair in edge.pairs {
            let partner = EDGES.iter().find(|other| other.name == *pair);
            let partner = partner.unwrap_or_else(|| panic!("{} names {pair}", edge.name));
            assert!(partner.pairs.contains(&edge.name), "{pair} does not name {}", edge.name);
            // Fences between a store and a load pair with each other; neither acquires or releases.
            let fit = match edge.ordering {
                Ordering::Acquire => partner.ordering == Ordering::Release,
                Ordering::Release => partner.ordering == Ordering::Acquire,
                _ => partner.ordering == Ordering::SeqCst && edge.kind == Kind::Fence,
            };
            assert!(fit, "{} does not meet {pair}", edge.name);
        }
    }
}

#[test]
fn names_are_unique_and_only_fences_are_stronger_than_a_release_or_an_acquire() {
    let names = || EDGES.iter().map(|edge| edge.name).chain(ARGUED.iter().map(|a| a.name));
    for (at, name) in names().enumerate() {
        assert!(names().take(at).all(|other| other != name), "{name}");
    }
    for edge in EDGES {
        let fits = match edge.kind {
            Kind::Load => edge.ordering == Ordering::Acquire,
            Kind::Store => edge.ordering == Ordering::Release,
            Kind::Rmw => matches!(edge.ordering, Ordering::Acquire | Ordering::Release),
            Kind::Fence => {
                matches!(edge.ordering, Ordering::Acquire | Ordering::Release | Ordering::SeqCst)
            }
        };
        assert!(fits, "{}", edge.name);
    }
}

/// The text of a file without comments and blanks, and if `only_code`, without strings and `use`.
fn stripped(text: &str, only_code: bool) -> String {
    let mut rest = text;
    let mut stripped = String::new();
    while let Some(next) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if only_code && (rest.starts_with("\nuse ") || rest.starts_with(" use ")) {
            let len = rest.find(';').unwrap();
            let used = &rest[..len];
            assert!(!(used.contains("ledger") && used.contains(" as ")), "renamed: {used}");
            len
        } else if next == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                end
            });
            let len = end.unwrap() + 2;
            if !only_code {
                stripped.push_str(&rest[..len]);
            }
            len
        } else {
            if !next.is_whitespace() {
                stripped.push(next);
            } else if stripped.ends_with(|c: char| c.is_alphanumeric()) {
                stripped.push(' '); // between words
            }
            next.len_utf8()
        };
        rest = &rest[len..];
    }
    stripped
}

/// Where `word` stands in `text` as a whole word.
fn words<'t>(text: &'t str, word: &str) -> impl Iterator<Item = &'t str> {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).filter_map(move |(at, word)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let whole = !part(before.chars().next_back()) && !part(after.chars().next());
        whole.then_some(after)
    })
}

/// Name and stripped text of the files of `core/src`, except the ledger and `sync`.
fn files(only_code: bool) -> Vec<(String, String)> {
    fn read(dir: &Path, only_code: bool, all: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("sync") {
                read(&path, only_code, all);
            } else if path.extension().is_some_and(|end| end == "rs")
                && !path.ends_with("ledger.rs")
            {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                all.push((name, stripped(&fs::read_to_string(path).unwrap(), only_code)));
            }
        }
    }
    let mut all = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src"), only_code, &mut all);
    all
}

fn places(files: &[(String, String)], word: &str) -> usize {
    files.iter().map(|(_, text)| words(text, word).count()).sum()
}

#[test]
fn a_name_is_found_wherever_it_stands() {
    let text = "//! What.\nuse crate::ledger::{ONE, TWO};\n\nfn f() {\n    g(1, ONE); // ONE\n    g(\n        \"ONE\\\" ONE\",\n        \
                ONE,\n    );\n    let one = ONE;\n    ONE_MORE(ANY_ONE);\n}\n";
    let code = stripped(text, true);
    assert_eq!(words(&code, "ONE").count(), 3, "{code}");
    assert_eq!((words(&code, "TWO").count(), words(&code, "ONE_MORE").count()), (0, 1), "{code}");
}

#[test]
fn every_edge_is_one_operation_of_the_source() {
    // A second place would be a second ordering, which might be needed at one of the two only.
    let files = files(true);
    for edge in EDGES {
        assert_eq!(places(&files, edge.name), 1, "not one operation carries {}", edge.name);
    }
}

#[test]
fn every_step_is_taken_somewhere() {
    let mut files = files(true);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src/sync/model.rs");
    files.push((String::new(), stripped(&fs::read_to_string(model).unwrap(), true)));
    for step in STEPS {
        assert_ne!(places(&files, &format!("{step:?}")), 0, "{step:?} can be left out nowhere");
    }
}

/// Reasons of `sync` itself: for mutants, and for tests.
const SYNC_REASONS: [&str; 2] = ["MUTANT", "TEST"];

#[test]
fn every_relaxed_access_says_why() {
    let mut reasons = 0;
    for ((name, text), (_, code)) in files(false).into_iter().zip(files(true)) {
        // A reason that several accesses share is a constant of their file.
        let shared: Vec<_> = words(&text, "const")
            .filter_map(|after| after.trim_start().split_once(":Relaxed =Relaxed(\""))
            .filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
            .map(|(name, reason)| (name, reason.split('"').next().unwrap()))
            .collect();
        for (constant, reason) in &shared {
            assert!(reason.len() > 15, "{reason:?} is no reason, in {name}");
            assert!(words(&code, constant).count() > 1, "{constant} is not used in {name}");
        }
        for after in words(&text, "Relaxed") {
            let after = after.trim_start();
            if let Some(reason) = after.strip_prefix("(\"") {
                let reason = reason.split('"').next().unwrap();
                assert!(reason.len() > 15, "{reason:?} is no reason, in {name}");
                reasons += 1;
                continue;
            }
            // In a list of what is used, or a shared reason.
            let named = after.starts_with([',', '}', ';']) || after.starts_with("=Relaxed(\"");
            assert!(named, "a reason is written where it holds: {name}, {}", &after[..40]);
        }
        // A constant of another file does not compile, except for those of `sync`.
        let used =
            SYNC_REASONS.iter().map(|constant| words(&code, constant).count()).sum::<usize>();
        assert!(
            used == 0 || ["vma.rs", "identity.rs", "park.rs", "hazard.rs"].contains(&&*name),
            "{name} has no reasons of its own"
        );
    }
    assert!(reasons > 20, "{reasons} reasons were found");
}

#[test]
fn every_argued_ordering_has_a_test() {
    for argued in ARGUED {
        let (file, test) = argued.test.split_once("::").unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        assert!(text.contains(&format!("#[test]\nfn {test}(")), "{}", argued.test);
        let words: usize = argued.because.iter().map(|step| step.len()).sum();
        assert!(words > 80, "{}: no argument", argued.name);
    }
}
