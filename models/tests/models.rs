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
