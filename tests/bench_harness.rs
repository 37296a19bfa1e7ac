//! Does the fio harness count, judge and select as it says? Its figures are in the README.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

#[test]
fn the_harness_passes_its_own_tests() {
    let mut tests = Command::new("python3");
    tests.args(["-B", "benches/fio/test_fiobench.py"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let out = tests.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("Ran ") && said.ends_with("OK\n"), "{said}");
}
