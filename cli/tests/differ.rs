//! `pervma differ`: what it prints and how it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/terminal.rs"]
mod terminal;

use common::{pervma, run};
use terminal::on_terminal;

#[test]
fn a_short_comparison_finds_nothing() {
    let ended = run(pervma(["differ", "--ops", "3000", "--seed", "5", "--json"]));
    if ended.exit == Some(2) {
        println!("NOT RUN: {}", ended.stderr);
        return;
    }
    assert_eq!((ended.exit, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&json["ops"], &json["seed"]), (&3000.into(), &5.into()));
    assert_eq!((&json["divergences"], json.get("resyncs")), (&0.into(), None));
    assert!(json["excluded"]["instructions"].as_u64().unwrap() > 0);
    let calls = json["by_call"].as_object().unwrap().values();
    let sum = |key: &str| calls.clone().map(|tally| tally[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("succeeded") + sum("failed"), 3000);
    assert!(json["by_errno"]["ENOMEM"].as_u64().unwrap() > 0);
    assert!(json["merges"].as_u64().unwrap() > 0 && json["splits"].as_u64().unwrap() > 0);
    assert!(json["kernel"].as_str().unwrap().starts_with(char::is_numeric));

    let ended = run(pervma(["differ", "--ops", "300"]));
    assert_eq!(ended.exit, Some(0));
    assert!(ended.stdout.ends_with("no divergence\n"), "{}", ended.stdout);
}

#[test]
fn how_far_it_is_is_shown_on_a_terminal() {
    let short = run(pervma(["differ", "--ops", "1"]));
    if short.exit == Some(2) {
        println!("NOT RUN: {}", short.stderr);
        return;
    }
    let (child, mut terminal) = on_terminal(pervma(["differ", "--ops", "2000"]));
    terminal.wait_for("comparing with the kernel");
    let shown = terminal.rest().to_owned();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("no divergence\n"));
}

#[test]
fn numbers_are_asked_for() {
    for bad in [["--ops", "many"], ["--ops", "-1"], ["--ops", "0"], ["--seed", "x"]] {
        let ended = run(pervma(["differ", bad[0], bad[1]]));
        assert_eq!((ended.exit, ended.stdout.as_str()), (Some(2), ""));
        assert!(ended.stderr.starts_with("pervma: ") && ended.stderr.contains(bad[1]));
    }
}
