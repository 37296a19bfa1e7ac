//! What the fuzz targets (fuzz/fuzz_targets/) and their replay on stable (tests/fuzz_corpus_replays.rs) run.
//!
//! Hidden from the documentation; no product code calls it. The first byte of an input says what the rest is.

use super::body::{CreateKey, ImportKey, UpdateKey, UseKey, VerifyKey};
use super::{Audience, Form, Host, Place, Query, from_base64url, place, to_base64url};
use crate::envelope::{valid_name, valid_version};
use crate::vault::local::{RotationPolicy, fuzz_backup};

/// `METHOD PATH[?QUERY]`, or `h` and a Host header, or `a` and an audience. Returns whether it leads somewhere.
///
/// # Panics
/// When what was accepted is not what it must be: a bug.
#[must_use]
pub fn fuzz_route(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    match text.split_at_checked(1) {
        Some(("h", host)) => return fuzz_host(host),
        Some(("a", audience)) => {
            return Audience::parse(audience).or_else(|_| Audience::of_scope(audience)).is_ok_and(|a| {
                assert_eq!(Audience::parse(a.as_str()).as_ref(), Ok(&a));
                a.as_str().len() <= "https://vault.localhost:65535".len()
            });
        }
        _ => {}
    }
    let Some((method, target)) = text.split_once(' ') else { return false };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = Query::parse(query);
    if let Ok(page) = query.page() {
        assert!((1..=25).contains(&page.limit));
        if let Some(after) = page.after {
            assert!(valid_name(&after) || valid_version(&after));
            // A link that we make is one that we take, and leads to the same place.
            if let Ok(link) = query.next(&after) {
                let again = Query::parse(link.strip_prefix('?').expect("a query"));
                assert_eq!(again.page().expect("our own link").after, Some(after));
                assert_eq!(again.api_version(), query.api_version());
            }
        }
    }
    match place(method, path) {
        Place::Vault(found) => found.is_ok(),
        Place::SignIn(found) => found.is_ok(),
    }
}

fn fuzz_host(text: &str) -> bool {
    let Ok(host) = Host::parse(text) else { return false };
    assert!(host.as_str().bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'/' | b'\\' | b'@')));
    assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host));
    assert_eq!(Audience::parse(host.audience().as_str()), Ok(host.audience()));
    assert!(Audience::accepted(&host).contains(&host.audience().as_str().to_owned()));
    true
}

/// A letter for the kind of body, and the body. Returns whether it was accepted.
///
/// # Panics
/// When what was accepted is not what it must be: a bug.
#[must_use]
pub fn fuzz_body(input: &[u8]) -> bool {
    let Some((kind, body)) = input.split_first() else { return false };
    let few_tags = |tags: Option<super::body::Tags>| assert!(tags.is_none_or(|t| t.len() <= 15));
    match kind {
        b'c' => CreateKey::parse(body).map(|c| few_tags(c.tags)).is_ok(),
        b'i' => ImportKey::parse(body)
            .map(|i| {
                few_tags(i.tags);
                let _ = crate::vault::local::ImportedKey::from_jwk(i.jwk);
            })
            .is_ok(),
        b'p' => UpdateKey::parse(body).map(|u| few_tags(u.tags)).is_ok(),
        b'u' => UseKey::parse(body).map(|u| round_trip(u.value.expose())).is_ok(),
        b'v' => VerifyKey::parse(body).map(|v| round_trip(v.digest.expose())).is_ok(),
        b'r' => super::body::restore(body).map(|b| round_trip(b.expose())).is_ok(),
        b'b' => fuzz_backup(body, false),
        b'q' => fuzz_backup(body, true),
        b'n' => super::body::random(body).is_ok_and(|n| (1..=128).contains(&n)),
        b't' => RotationPolicy::from_json(body).and_then(RotationPolicy::checked).is_ok_and(|p| {
            let again = RotationPolicy::from_json(p.to_json().to_string().as_bytes());
            assert_eq!(again.as_ref().ok(), Some(&p));
            true
        }),
        b'f' => {
            let form = Form::parse(body);
            form.secret.is_some() || form.resource.is_some()
        }
        _ => false,
    }
}

fn round_trip(bytes: &[u8]) {
    let again = from_base64url(&to_base64url(bytes)).expect("our own text");
    assert_eq!(again.expose(), bytes);
}
