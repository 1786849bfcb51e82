//! Every model holds and rejects its mutants. The tables are printed with `--nocapture`, and on
//! failure.

use std::process::Command;

#[test]
fn every_model_holds_and_rejects_its_mutants() {
    let output = Command::new(env!("CARGO_BIN_EXE_pervma-models")).output().unwrap();
    let tables = String::from_utf8_lossy(&output.stdout);
    println!("{tables}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let sums = tables.lines().last().unwrap();
    let sum = |name: &str| -> u64 {
        let after = sums.split(&format!("\"{name}\":")).nth(1).unwrap();
        after.split([',', '}']).next().unwrap().parse().unwrap()
    };
    assert_eq!(sum("edges"), sum("modelled") + sum("argued"));
    assert_eq!(sum("mutants"), sum("killed"));
    assert_eq!(sum("survivors"), 0);
    assert_eq!(sum("bugs"), 36);

    let (named, modelled, argued) = (sum("edges"), sum("modelled"), sum("argued"));
    let (models, mutants) = (sums.split(' ').next().unwrap(), sum("mutants"));
    for (page, states) in [
        (
            "README.md",
            format!("{named} memory orderings have names. {modelled} of them are checked"),
        ),
        ("README.md", format!("in {models} models of the shipped source")),
        (
            "README.md",
            format!("{mutants} such mutants, all rejected. The other {argued} are argued"),
        ),
        ("CHANGELOG.md", format!("{models} models, {modelled} edges, {mutants} mutants")),
    ] {
        let path = format!("{}/../{page}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(&states), "{page} does not state: {states}");
    }
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
