//! The ledger is whole: each edge names its other end, which names it back, and is one operation of
//! the source; every relaxed access says why; what is argued is also tried.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use pervma::ledger::{ARGUED, EDGES, Kind, Ordering, STEPS};

#[test]
fn both_ends_of_every_edge_name_each_other() {
    for edge in EDGES {
        assert!(!edge.pairs.is_empty() && !edge.without.is_empty(), "{}", edge.name);
        for pair in edge.pairs {
            let partner = EDGES.iter().find(|other| other.name == *pair);
            let partner = partner.unwrap_or_else(|| panic!("{} names {pair}", edge.name));
            assert!(partner.pairs.contains(&edge.name), "{pair} does not name {}", edge.name);
            let acquires = |ordering| matches!(ordering, Ordering::Acquire);
            assert_ne!(
                acquires(edge.ordering),
                acquires(partner.ordering),
                "{} and {pair} are the same end",
                edge.name
            );
        }
    }
}

#[test]
fn names_are_unique_and_no_ordering_is_stronger_than_a_release_or_an_acquire() {
    let names = || EDGES.iter().map(|edge| edge.name).chain(ARGUED.iter().map(|a| a.name));
    for (at, name) in names().enumerate() {
        assert!(names().take(at).all(|other| other != name), "{name}");
    }
    for edge in EDGES {
        let fits = match edge.kind {
            Kind::Load => edge.ordering == Ordering::Acquire,
            Kind::Store => edge.ordering == Ordering::Release,
            Kind::Rmw | Kind::Fence => {
                matches!(edge.ordering, Ordering::Acquire | Ordering::Release)
            }
        };
        assert!(fits, "{}", edge.name);
    }
}

/// The files of `core/src` but the ledger and the facade, without comments and blanks.
fn source() -> String {
    fn read(dir: &Path, all: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("facade") {
                read(&path, all);
            } else if path.extension().is_some_and(|end| end == "rs")
                && !path.ends_with("ledger.rs")
            {
                let text = fs::read_to_string(path).unwrap();
                let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
                all.extend(code.flat_map(|line| line.chars().filter(|c| !c.is_whitespace())));
            }
        }
    }
    let mut all = String::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    all
}

#[test]
fn every_edge_is_one_operation_of_the_source() {
    // A second place would be a second ordering, which might be needed at one of the two only.
    let source = source();
    for name in EDGES.iter().map(|edge| edge.name) {
        let places = [format!(",{name})"), format!("({name})")];
        let places: usize = places.iter().map(|place| source.matches(place.as_str()).count()).sum();
        assert_eq!(places, 1, "so many operations carry {name}");
    }
}

#[test]
fn every_step_is_taken_somewhere() {
    let source = source();
    for step in STEPS {
        assert!(source.contains(&format!("Step::{step:?})")), "{step:?} is nowhere left out");
    }
}

#[test]
fn every_relaxed_access_says_why() {
    // That there is a string is held by its type (`tests/facade.rs`).
    let source = source();
    let mut reasons = 0;
    for reason in source.split("Relaxed(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(
            reason == "mutant" || reason == "test" || reason.len() > 15,
            "{reason:?} is no reason"
        );
        reasons += 1;
    }
    assert!(reasons > 20, "{reasons} reasons were found");
}

#[test]
fn what_is_argued_is_tried() {
    for argued in ARGUED {
        let (file, test) = argued.test.split_once("::").unwrap();
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        assert!(text.contains(&format!("#[test]\nfn {test}(")), "{}", argued.test);
        assert!(argued.because.len() > 80, "{}: why?", argued.name);
    }
}
