//! Every model holds and rejects its mutants. The table is printed with `--nocapture`, and on
//! failure.

use std::process::Command;

#[test]
fn every_model_holds_and_rejects_its_mutants() {
    let output = Command::new(env!("CARGO_BIN_EXE_pervma-models")).output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    println!("{table}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.trim_end().ends_with("killed, 0 wrong"), "the table is whole");
}

#[test]
fn the_page_of_orderings_is_what_the_ledger_says() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_pervma-models")).arg("--orderings").output().unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/orderings.md");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        std::fs::read_to_string(page).unwrap(),
        "stale: cargo run -p pervma-models -- --orderings > docs/orderings.md"
    );
}
