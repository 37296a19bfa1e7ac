//! Does `wrapdisk vault serve` answer as Azure Key Vault was recorded to answer: the same statuses, headers, members,
//! types, codes and messages, field by field?
//!
//! The facts are in tests/data/azure_exchanges.json, with where they come from. What an answer holds must be exactly what is
//! there: a member too many is as wrong as one that is missing.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod serve_support;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};
use serve_support::{Answer, Client, Served};
use wrapdisk::vault::wire::to_base64url;

/// What earlier exchanges left, and how to judge what comes next.
struct Scene {
    host: String,
    /// `{name}`, `{version}` and so on, of one key.
    kept: BTreeMap<String, BTreeMap<String, String>>,
    wrong: Vec<String>,
}

#[test]
fn every_recorded_exchange_is_answered_as_recorded() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/azure_exchanges.json");
    let facts: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let served = Served::new();
    // As the recorded vault has it.
    served.vault.set_retention(Some(7), None, &served.vault.admin("test")).expect("a retention");
    let host = format!("127.0.0.1:{}", served.port);
    let mut scene = Scene { host, kept: BTreeMap::new(), wrong: Vec::new() };
    for exchange in facts["exchanges"].as_array().unwrap() {
        scene.exchange(&facts, exchange, &served);
    }
    assert!(scene.wrong.is_empty(), "\n{}\n", scene.wrong.join("\n"));
}

#[test]
fn every_exchange_names_a_recording() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/azure_exchanges.json");
    let facts: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let used: BTreeSet<&str> =
        facts["exchanges"].as_array().unwrap().iter().map(|e| e["source"].as_str().unwrap()).collect();
    let named: BTreeSet<&str> = facts["sources"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(used, named);
}

impl Scene {
    fn exchange(&mut self, facts: &Value, exchange: &Value, served: &Served) {
        let text = |member: &str| exchange[member].as_str().unwrap();
        let name = text("name");
        let client = if exchange["token"] == false { served.nobody() } else { served.officer.clone() };
        let kept = self.kept.entry(name.to_owned()).or_default();
        kept.insert("name".into(), format!("recorded-{name}"));
        let fill =
            |text: &str| kept.iter().fold(text.to_owned(), |t, (k, v)| t.replace(&format!("{{{k}}}"), v));
        let target = fill(text("path"));
        let target = target.strip_prefix(&format!("https://{}", self.host)).unwrap_or(&target).to_owned();
        let body = exchange
            .get("body")
            .map(|b| if b["key"] == "<jwk>" { json!({ "key": jwk() }) } else { b.clone() });
        let body = body.map(|b| fill(&b.to_string()));
        let expected: Value = serde_json::from_str(&fill(&exchange["answer"].to_string())).unwrap();
        let answer = ask(&client, text("method"), &target, body.as_deref());

        let before = self.wrong.len();
        if Some(u64::from(answer.status)) != exchange["status"].as_u64() {
            self.wrong.push(format!("status {}: {}", answer.status, answer.text));
        }
        self.headers(&answer, &facts["every answer"]);
        self.headers(&answer, exchange.get("headers").unwrap_or(&Value::Null));
        let found = if expected.is_null() {
            let extra = answer.headers.iter().filter(|(n, _)| n == "content-type" || n == "content-length");
            self.wrong.extend(extra.map(|(name, value)| format!("a header too many, {name}: {value}")));
            if !answer.text.is_empty() {
                self.wrong.push(format!("a body: {}", answer.text));
            }
            Value::Null
        } else {
            self.headers(&answer, &facts["every body"]);
            serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{target}: {e}: {}", answer.text))
        };
        self.compare("", &expected, &found);
        for wrong in &mut self.wrong[before..] {
            *wrong = format!("{} ({} {target}): {wrong}", exchange["what"].as_str().unwrap(), text("method"));
        }
        for (what, pointer) in exchange.get("keep").and_then(Value::as_object).into_iter().flatten() {
            let value = found.pointer(pointer.as_str().unwrap()).and_then(Value::as_str).unwrap_or_default();
            let value = if pointer.as_str().unwrap().ends_with("kid") {
                value.rsplit('/').next().unwrap()
            } else {
                value
            };
            self.kept.get_mut(name).unwrap().insert(what.clone(), value.to_owned());
        }
    }

    fn headers(&mut self, answer: &Answer, wanted: &Value) {
        for (name, wanted) in wanted.as_object().into_iter().flatten() {
            let found =
                answer.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
            let wanted = wanted.as_str().unwrap().replace("<echo>", REQUEST_ID);
            match found {
                Some(found) if like(&wanted, found) => {}
                _ => self.wrong.push(format!("header {name}: found {found:?}, recorded {wanted}")),
            }
        }
    }

    fn compare(&mut self, at: &str, wanted: &Value, found: &Value) {
        match (wanted, found) {
            (Value::Object(wanted), Value::Object(found)) => {
                let names: BTreeSet<&String> = wanted.keys().chain(found.keys()).collect();
                for name in names {
                    let at = format!("{at}/{name}");
                    match (wanted.get(name), found.get(name)) {
                        (Some(wanted), Some(found)) => self.compare(&at, wanted, found),
                        (Some(_), None) => self.wrong.push(format!("{at} is missing")),
                        (None, Some(found)) => self.wrong.push(format!("{at} is too many: {found}")),
                        (None, None) => {}
                    }
                }
            }
            (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
                for (n, (wanted, found)) in wanted.iter().zip(found).enumerate() {
                    self.compare(&format!("{at}/{n}"), wanted, found);
                }
            }
            (Value::String(pattern), _) if pattern.starts_with('<') => {
                if !self.fits(pattern, found) {
                    self.wrong.push(format!("{at}: found {found}, recorded {pattern}"));
                }
            }
            _ if wanted == found => {}
            _ => self.wrong.push(format!("{at}: found {found}, recorded {wanted}")),
        }
    }

    /// A value that differs at every recording, by its kind.
    fn fits(&self, pattern: &str, found: &Value) -> bool {
        let (kind, rest) = pattern
            .trim_matches(['<', '>'])
            .split_once(' ')
            .unwrap_or((pattern.trim_matches(['<', '>']), ""));
        let text = found.as_str().unwrap_or_default();
        let own = text.strip_prefix(&format!("https://{}", self.host));
        match kind {
            "time" => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
                let expected = now + rest.trim_start_matches('+').parse().unwrap_or(0);
                found.as_u64().is_some_and(|found| found.abs_diff(expected) < 600)
            }
            "base64url" => {
                let alphabet = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                !text.is_empty() && text.bytes().all(alphabet)
            }
            "kid" if rest.is_empty() => own.is_some_and(|path| path.starts_with("/keys/")),
            "kid" => {
                own.and_then(|path| path.strip_prefix("/keys/")).is_some_and(|id| {
                    id.strip_prefix(rest).is_some_and(
                        // A name alone stands for any of its versions.
                        |version| version.is_empty() || (!rest.contains('/') && version.starts_with('/')),
                    )
                })
            }
            "url" => own.is_some_and(|found| same_target(rest, found)),
            _ => panic!("no kind {pattern}"),
        }
    }
}

/// Equal paths, and equal parameters in any order; `*` is anything.
fn same_target(wanted: &str, found: &str) -> bool {
    let split = |url: &str| {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let mut query: Vec<String> = query.split('&').map(str::to_owned).collect();
        query.sort();
        (path.to_owned(), query)
    };
    let (wanted, found) = (split(wanted), split(found));
    let any = |(w, f): (&String, &String)| w == f || w.strip_suffix('*').is_some_and(|w| f.starts_with(w));
    wanted.0 == found.0 && wanted.1.len() == found.1.len() && wanted.1.iter().zip(&found.1).all(any)
}

/// A text in which `<...>` stands for anything but nothing.
fn like(wanted: &str, found: &str) -> bool {
    let mut pieces = wanted.split('<');
    let Some(mut rest) = pieces.next().and_then(|first| found.strip_prefix(first)) else { return false };
    for piece in pieces {
        let literal = piece.split_once('>').map_or("", |(_, literal)| literal);
        if literal.is_empty() {
            return !rest.is_empty(); // the pattern ends here
        }
        let Some(at) = rest.get(1..).and_then(|r| r.find(literal)) else { return false };
        rest = &rest[1 + at + literal.len()..];
    }
    rest.is_empty()
}

const REQUEST_ID: &str = "0b0a0908-0706-0504-0302-010000000001";

fn ask(client: &Client, method: &str, target: &str, body: Option<&str>) -> Answer {
    client.raw(method, target, body, &["--header", &format!("x-ms-client-request-id: {REQUEST_ID}")])
}

/// A key as somebody would import it, its modulus with a leading zero, as the recorded one has.
fn jwk() -> Value {
    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let text = |n: &rsa::BoxedUint| to_base64url(&n.to_be_bytes_trimmed_vartime());
    let modulus = [&[0], &*key.n().to_be_bytes_trimmed_vartime()].concat();
    let [p, q] = key.primes() else { panic!("two primes") };
    json!({
        "kty": "RSA", "n": to_base64url(&modulus), "e": text(key.e()), "d": text(key.d()), "p": text(p.as_ref()),
        "q": text(q.as_ref()), "key_ops": ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
    })
}

#[test]
fn the_judge_itself_finds_what_differs() {
    assert!(like("a=\"<url>\", b=\"<url>\"", "a=\"x\", b=\"y\""));
    assert!(like("<any>", "x") && like("conn_type=<any>;addr=<any>;", "conn_type=Ipv4;addr=1;"));
    assert!(!like("a=\"<url>\"", "a=\"\"") && !like("no-cache", "no-cache, no-store") && !like("<any>", ""));
    assert!(same_target("/keys?a=1&$skiptoken=*", "/keys?$skiptoken=x&a=1"));
    assert!(!same_target("/keys?a=1", "/keys?a=1&b=2") && !same_target("/keys", "/key"));
    let mut scene = Scene { host: "h".into(), kept: BTreeMap::new(), wrong: Vec::new() };
    let wanted = json!({ "a": 1, "b": "<time>", "c": ["<kid n/v>", "<kid n>"], "d": null });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let same = json!({ "a": 1, "b": now, "c": ["https://h/keys/n/v", "https://h/keys/n/w"], "d": null });
    scene.compare("", &wanted, &same);
    assert_eq!(scene.wrong, [""; 0]);
    let other = json!({ "a": "1", "b": 5, "c": ["https://h/keys/n/w", "https://i/keys/n"], "e": null });
    scene.compare("", &wanted, &other);
    assert_eq!(scene.wrong.len(), 6, "{:?}", scene.wrong);
}
