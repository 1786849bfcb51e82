//! The command, as a script would use it. No figure is judged.

use std::error::Error;
use std::process::Command;

use serde_json::Value;

#[test]
fn one_benchmark_as_json_and_as_a_picture() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let output = Command::new(env!("CARGO_BIN_EXE_pervma-bench"))
        .args(["--quick", "--json", "--only", "cursor", "--plot"])
        .arg(folder.path())
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut report: Value = serde_json::from_slice(&output.stdout)?;
    assert!(report["machine"]["versions"]["scc"].is_string());
    let benchmarks = report["benchmarks"].as_array().ok_or("benchmarks")?;
    assert_eq!(benchmarks.len(), 1);
    assert_eq!(benchmarks[0]["benchmark"], "cursor");
    for table in benchmarks[0]["tables"].as_array().ok_or("tables")? {
        let cases = table["cases"].as_array().ok_or("cases")?.len();
        for line in table["lines"].as_array().ok_or("lines")? {
            let figures = line["figures"].as_array().ok_or("figures")?;
            let positive = |figure: &&Value| figure["median"].as_f64() > Some(0.0);
            assert_eq!(figures.iter().filter(positive).count(), cases, "{line}");
        }
    }
    assert_eq!(benchmarks[0]["goals"].as_array().map(Vec::len), Some(12));

    let picture = std::fs::read_to_string(folder.path().join("cursor.svg"))?;
    assert!(picture.contains("<svg") && picture.contains("pervma, cursor"));

    // A page, without words for goals that this build misses.
    for goal in report["benchmarks"][0]["goals"].as_array_mut().ok_or("goals")? {
        goal["holds"] = true.into();
    }
    let saved = folder.path().join("run.json");
    std::fs::write(&saved, report.to_string())?;
    let output =
        Command::new(env!("CARGO_BIN_EXE_pervma-bench")).arg("page").arg(&saved).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = String::from_utf8(output.stdout)?;
    assert!(
        page.contains("Of 12 goals, 12 hold") && page.contains("| pervma, cursor | "),
        "{page}"
    );
    Ok(())
}

/// With what it opens with, of benchmarks of two runs.
#[test]
fn a_page_of_several_runs() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut page = Command::new(env!("CARGO_BIN_EXE_pervma-bench"));
    page.arg("page");
    for (name, goals) in [("writer", 8), ("different", 2)] {
        let output = Command::new(env!("CARGO_BIN_EXE_pervma-bench"))
            .args(["--quick", "--json", "--only", name])
            .output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut report: Value = serde_json::from_slice(&output.stdout)?;
        let judged = report["benchmarks"][0]["goals"].as_array_mut().ok_or("goals")?;
        assert_eq!(judged.len(), goals, "{name}");
        judged.iter_mut().for_each(|goal| goal["holds"] = true.into());
        let saved = folder.path().join(name);
        std::fs::write(&saved, report.to_string())?;
        page.arg(saved);
    }
    let output = page.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = String::from_utf8(output.stdout)?;
    let lines =
        page.lines().filter(|line| line.starts_with("| | pervma | what people use today |"));
    assert_eq!(lines.count(), 1, "{page}");
    for part in [
        "```mermaid\nxychart-beta horizontal\n",
        "| look up while another thread maps",
        "| two threads look up",
        "Of 10 goals, 10 hold",
        "\n### writer\n",
        "\n### different\n",
    ] {
        assert!(page.contains(part), "{part}\n\n{page}");
    }
    Ok(())
}

#[test]
fn the_daemon_beside_its_peers() -> Result<(), Box<dyn Error>> {
    let names = [
        "daemon-faults",
        "daemon-events",
        "daemon-guest",
        "daemon-clients",
        "daemon-transfers",
        "daemon-deaths",
        "daemon-criu",
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_pervma-bench"))
        .args(["--quick", "--json"])
        .args(names.iter().flat_map(|name| ["--only", name]))
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    for (name, goals) in names.into_iter().zip([9, 5, 2, 1, 9, 6, 4]) {
        let benchmarks = report["benchmarks"].as_array().ok_or("benchmarks")?;
        let benchmark = benchmarks.iter().find(|benchmark| benchmark["benchmark"] == name);
        let benchmark = benchmark.ok_or(name)?;
        if benchmark["about"].as_str().is_some_and(|about| about.starts_with("ABSENT")) {
            println!("NOT RUN: {name}: {}", String::from_utf8_lossy(&output.stderr));
            continue;
        }
        assert_eq!(benchmark["goals"].as_array().map(Vec::len), Some(goals), "{name}");
        for table in benchmark["tables"].as_array().ok_or("tables")? {
            for line in table["lines"].as_array().ok_or("lines")? {
                let figures = line["figures"].as_array().ok_or("figures")?;
                assert!(figures.iter().all(|figure| figure["median"].is_number()), "{line}");
            }
        }
    }
    Ok(())
}

#[test]
fn without_valgrind_its_benchmark_is_absent() -> Result<(), Box<dyn Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_pervma-bench"))
        .args(["--only", "instructions", "--check"])
        .env("PATH", "")
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout)?.contains("ABSENT: valgrind"));
    Ok(())
}
