//! Does docs/CONFORMANCE.md say what the suites did?
//!
//! Its tables are made from the requests that went over the wire, so nobody can claim a route that no SDK used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use crate::steps::{ALL, Step};
use crate::{az, js, python, rust};

/// The judges, as columns.
const JUDGES: [(&str, &str); 4] =
    [("python", "Python"), ("js", "JavaScript"), ("rust", "Rust"), ("az", "az")];

const BEGIN: &str = "<!-- from here on made by tests/sdk/table.rs -->\n";

#[test]
fn the_conformance_table_is_what_the_suites_did() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFORMANCE.md");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let head = text.split_once(BEGIN).map_or("", |(head, _)| head);
    let steps: Vec<&Step> =
        [python::steps(), js::steps(), rust::steps(), az::steps()].into_iter().flatten().collect();
    let new = format!("{head}{BEGIN}\n{}\n{}", routes(&steps), calls(&steps));
    if new != text {
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("CONFORMANCE.md");
        std::fs::write(&made, &new).unwrap();
        panic!("docs/CONFORMANCE.md is stale: look at what changed, then\n  cp {} docs/", made.display());
    }
}

/// Routes and judges, with every status that a judge met there.
fn routes(steps: &[&Step]) -> String {
    let mut met: BTreeMap<(String, String), BTreeMap<&str, BTreeSet<u16>>> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.ok) {
        for (method, path, status) in &step.requests {
            let row = met.entry((route(path), method.clone())).or_default();
            row.entry(&step.sdk).or_default().insert(*status);
        }
    }
    let rows = met.iter().map(|((path, method), row)| {
        let cells = JUDGES.map(|(judge, _)| {
            let statuses: Vec<String> = row.get(judge).into_iter().flatten().map(u16::to_string).collect();
            statuses.join(" ")
        });
        (format!("`{method} {path}`"), cells)
    });
    format!(
        "## Routes\n\nThe statuses that each judge met, the refusals on purpose.\n\n{}",
        table("Route", rows.collect())
    )
}

/// Steps and judges.
fn calls(steps: &[&Step]) -> String {
    let mut names: Vec<&str> = ALL.to_vec();
    names.push("untrusted");
    for step in steps {
        if !names.contains(&step.step.as_str()) {
            names.push(&step.step);
        }
    }
    let rows = names.iter().map(|name| {
        let cells = JUDGES.map(|(judge, _)| {
            let of = steps.iter().filter(|s| s.ok && s.sdk == judge && s.step == *name);
            let ways: BTreeSet<&str> = of.map(|s| s.credentials.as_str()).collect();
            if ways.len() > 1 { "both".to_owned() } else { ways.into_iter().collect() }
        });
        ((*name).to_owned(), cells)
    });
    format!(
        "## Steps\n\nWhat each suite drives, and how it signed in: with a client secret, a managed identity, or once with each. \
         \"untrusted\" is the refusal to talk to the vault without its CA.\n\n{}",
        table("Step", rows.collect())
    )
}

fn table(first: &str, rows: Vec<(String, [String; 4])>) -> String {
    let mut out = format!("| {first} |");
    for (_, name) in JUDGES {
        let _ = write!(out, " {name} |");
    }
    out.push_str("\n|---|---|---|---|---|\n");
    for (name, cells) in rows {
        let _ = writeln!(
            out,
            "| {name} | {} |",
            cells.map(|c| if c.is_empty() { "-".into() } else { c }).join(" | ")
        );
    }
    out
}

/// A path with its names and versions taken out.
fn route(path: &str) -> String {
    let hex = |s: &&str| s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit());
    let uuid = |s: &&str| s.len() == 36 && s.matches('-').count() == 4;
    let parts: Vec<String> = path.split('/').skip(1).map(str::to_lowercase).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts[..] {
        ["keys" | "deletedkeys"] | ["keys", "restore"] => format!("/{}", parts.join("/")),
        ["deletedkeys", _] => "/deletedkeys/{name}".into(),
        ["deletedkeys", _, last] => format!("/deletedkeys/{{name}}/{last}"),
        ["keys", _] => "/keys/{name}".into(),
        ["keys", _, ""] => "/keys/{name}/".into(),
        ["keys", _, version] if hex(&version) => "/keys/{name}/{version}".into(),
        ["keys", _, last] => format!("/keys/{{name}}/{last}"),
        ["keys", _, "", last] => format!("/keys/{{name}}//{last}"),
        ["keys", _, _, last] => format!("/keys/{{name}}/{{version}}/{last}"),
        [tenant, ref rest @ ..] if uuid(&tenant) => format!("/{{tenant}}/{}", rest.join("/")),
        _ => format!("/{}", parts.join("/")),
    }
}
