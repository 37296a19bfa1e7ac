//! The steps of the suites, as they report them.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The steps of every SDK suite, in their order.
pub(crate) const ALL: [&str; 21] = [
    "create",
    "import",
    "get",
    "challenge",
    "list",
    "versions",
    "update",
    "wrap and unwrap",
    "encrypt and decrypt",
    "sign and verify",
    "disable",
    "rotate",
    "rotation policy",
    "expired",
    "not granted",
    "delete",
    "recover",
    "purge",
    "backup and restore",
    "random bytes",
    "not supported",
];

/// A way of signing in, and its only step.
pub(crate) const IMDS: &str = "instance metadata";

/// One line of a suite.
#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    pub(crate) sdk: String,
    pub(crate) credentials: String,
    pub(crate) step: String,
    pub(crate) ok: bool,
    pub(crate) error: Option<String>,
    /// Method, path and status of what went over the wire.
    pub(crate) requests: Vec<(String, String, u16)>,
}

/// Reads the lines among what a program printed.
#[track_caller]
pub(crate) fn read(out: &str) -> Vec<Step> {
    let lines = out.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Did a suite do everything, both ways of signing in, and without our CA nothing?
#[track_caller]
pub(crate) fn all_passed(steps: &[Step]) {
    let failed: Vec<String> = steps
        .iter()
        .filter(|step| !step.ok)
        .map(|s| {
            format!("{}, {}, {}: {}", s.sdk, s.credentials, s.step, s.error.as_deref().unwrap_or_default())
        })
        .collect();
    assert!(failed.is_empty(), "\n{}\n", failed.join("\n"));
    for credentials in ["managed identity", "client secret"] {
        let of = |s: &&Step| s.credentials == credentials && s.step != "untrusted";
        let done: Vec<&str> = steps.iter().filter(of).map(|s| s.step.as_str()).collect();
        assert_eq!(done, ALL, "{credentials}");
    }
    let by_metadata = steps.iter().filter(|s| s.step == IMDS && s.credentials == IMDS).count();
    assert_eq!(by_metadata, usize::from(steps[0].sdk != "rust"), "{IMDS}");
    let untrusted: BTreeSet<_> =
        steps.iter().filter(|s| s.step == "untrusted").map(|s| &s.requests).collect();
    assert_eq!(untrusted, BTreeSet::from([&Vec::new()]), "requests to a server that nobody vouched for");
}
