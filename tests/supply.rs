//! Do all crates that we build on carry a licence that `deny.toml` allows, and come from crates.io?
//!
//! The full judge is `cargo deny` (tests/run --long): installing it takes longer than our whole build, so every run
//! asks `cargo metadata` the questions that matter, against the same `deny.toml`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Everything in the build for Linux, whatever features are on; `Cargo.lock` decides the versions.
fn packages() -> Vec<Value> {
    let mut packages = Vec::new();
    for target in ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"] {
        let mut all = metadata(&["--all-features", "--filter-platform", target]);
        let Value::Array(of_target) = all["packages"].take() else { panic!("cargo metadata: no packages") };
        packages.extend(of_target);
    }
    assert!(packages.len() > 100, "found {} packages: this cannot be all", packages.len());
    packages
}

/// The strings of `key = [ ... ]` under `[section]` of deny.toml, which we write so that this is enough.
fn policy(section: &str, key: &str) -> Vec<String> {
    let text = include_str!("../deny.toml");
    let body = text.split_once(&format!("[{section}]\n")).unwrap().1;
    let body = body.split("\n[").next().unwrap();
    let list = body.split_once(&format!("{key} = [")).unwrap().1.split_once("]\n").unwrap().0;
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Evaluates an SPDX expression (annex D: `AND` binds closer than `OR`); `/` is crates.io's old spelling of `OR`.
fn licence_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any_of(&mut words, allowed);
    result && words.next().is_none()
}

type Words<'a, 'b> = &'b mut std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut result = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        result |= all_of(words, allowed);
    }
    result
}

fn all_of(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let result = any_of(words, allowed);
        return words.next() == Some(")") && result;
    }
    let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
    let name = exception.map_or_else(|| word.to_owned(), |e| format!("{word} WITH {e}"));
    allowed.contains(&name)
}

fn complaint(package: &Value, licences: &[String]) -> Option<String> {
    let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
    let licence = package["license"].as_str().unwrap_or("none");
    if !licence_allowed(licence, licences) {
        return Some(format!("{name} {version}: licence: found \"{licence}\", allowed {licences:?}"));
    }
    match package["source"].as_str() {
        None if name == env!("CARGO_PKG_NAME") => None,
        Some(CRATES_IO) => None,
        other => Some(format!("{name} {version}: source: found {other:?}, allowed crates.io")),
    }
}

#[test]
fn every_crate_has_an_allowed_licence_and_comes_from_crates_io() {
    let licences = policy("licenses", "allow");
    let wrong: Vec<_> = packages().iter().filter_map(|p| complaint(p, &licences)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn no_system_crypto_library_is_linked() {
    let linked: Vec<_> = packages().iter().filter_map(|p| p["links"].as_str().map(str::to_owned)).collect();
    assert!(linked.iter().any(|l| l == "sqlite3"), "the question is not being asked: {linked:?}");
    assert!(!linked.iter().any(|l| ["openssl", "crypto", "ssl"].contains(&l.as_str())), "{linked:?}");
}

/// Without its feature `getrandom`, `rsa` takes no random numbers by itself and decrypts without blinding, silently;
/// the answer to RUSTSEC-2023-0071 in deny.toml would then be untrue.
#[test]
fn rsa_decrypts_with_blinding() {
    let all = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let features = |name: &str| {
        let nodes = all["resolve"]["nodes"].as_array().unwrap();
        let is = |node: &&Value| node["id"].as_str().unwrap().contains(&format!("#{name}@"));
        nodes.iter().find(is).unwrap()["features"].as_array().unwrap().clone()
    };
    assert!(features("rsa").contains(&"getrandom".into()), "{:?}", features("rsa"));
    assert!(!features("rsa").contains(&"hazmat".into()), "{:?}", features("rsa"));
    assert!(
        policy("advisories", "ignore").contains(&"RUSTSEC-2023-0071".to_owned()),
        "then this test may go"
    );
}

#[test]
fn a_planted_licence_or_source_is_found() {
    let package = |licence: Value, source: Value| {
        complaint(
            &serde_json::json!({"name": "x", "version": "1.0.0", "license": licence, "source": source}),
            &policy("licenses", "allow"),
        )
    };
    assert_eq!(package("MIT OR GPL-3.0-only".into(), CRATES_IO.into()), None);
    assert!(
        package("GPL-3.0-only".into(), CRATES_IO.into())
            .unwrap()
            .starts_with("x 1.0.0: licence: found \"GPL")
    );
    assert!(package(Value::Null, CRATES_IO.into()).unwrap().contains("found \"none\""));
    assert!(package("MIT".into(), "git+https://git.example/x".into()).unwrap().contains("source: found"));
    assert!(package("MIT".into(), Value::Null).unwrap().contains("source: found None"));
}

#[test]
fn spdx_expressions_are_read_as_they_are_meant() {
    let allowed: Vec<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-2.0", false),
        ("MIT/GPL-2.0", true),
        ("GPL-2.0 OR MIT", true),
        ("MIT AND GPL-2.0", false),
        ("MIT AND GPL-2.0 OR ISC", true),
        ("MIT AND (GPL-2.0 OR ISC)", true),
        ("(GPL-2.0 OR ISC) AND X", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("", false),
        ("MIT ISC", false),
        ("(MIT", false),
    ] {
        assert_eq!(licence_allowed(expression, &allowed), expected, "{expression}");
    }
}
