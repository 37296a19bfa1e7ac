//! Method, path and query -> what is asked. Pure, and run under a fuzzer.
//!
//! The official SDKs send paths that a normalising library would break: `/keys/n/` for the latest version,
//! `/keys/n//wrapkey` for an operation with it, `?api%2Dversion=`. So the path is split here, by hand, and each segment
//! is decoded once, after splitting: an encoded slash is part of a name (and makes it invalid).

use super::{Malformed, shown, to_base64url};
use crate::envelope::{KeyRef, valid_name, valid_version};
use crate::vault::KeyOperation;

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The vault: only with a token, and what is wrong is said only then.
    Vault(Result<Route, Unroutable>),
    /// Where tokens come from.
    SignIn(Result<SignInPlace, Unroutable>),
}

/// An endpoint of the token service, below a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignInPlace {
    /// `GET /TENANT/v2.0/.well-known/openid-configuration`.
    Configuration,
    /// `GET /TENANT/discovery/v2.0/keys`: none, the tokens are opaque.
    SigningKeys,
    /// `POST /TENANT/oauth2/v2.0/token`.
    Token,
}

/// A request to the vault. Names are as they came; the vault refuses invalid ones, after the permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /keys/N/create`.
    Create(String),
    /// `PUT /keys/N`.
    Import(String),
    /// `GET /keys/N[/V]`.
    Get(KeyRef),
    /// `PATCH /keys/N[/V]`.
    Update(KeyRef),
    /// `DELETE /keys/N`.
    Delete(String),
    /// `GET /keys`.
    List,
    /// `GET /keys/N/versions`.
    ListVersions(String),
    /// `POST /keys/N/rotate`.
    Rotate(String),
    /// `GET /keys/N/rotationpolicy`.
    GetPolicy(String),
    /// `PUT /keys/N/rotationpolicy`.
    SetPolicy(String),
    /// `POST /keys/N[/V]/wrapkey` and its like.
    Use(KeyOperation, KeyRef),
    /// `POST /keys/N/backup`.
    Backup(String),
    /// `POST /keys/restore`.
    Restore,
    /// `GET /deletedkeys/N`.
    GetDeleted(String),
    /// `GET /deletedkeys`.
    ListDeleted,
    /// `POST /deletedkeys/N/recover`.
    Recover(String),
    /// `DELETE /deletedkeys/N`.
    Purge(String),
    /// `POST /rng`.
    Random,
    /// Part of the API, but not of this vault.
    Unsupported(&'static str),
}

/// A request that leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unroutable {
    /// No such path.
    NotFound,
    /// The path takes these.
    Method(&'static str),
}

/// Where a request goes: its method, and its path still encoded.
#[must_use]
pub fn place(method: &str, path: &str) -> Place {
    let segments: Vec<String> = path
        .strip_prefix('/')
        .unwrap_or(path)
        .split('/')
        .map(|s| percent_encoding::percent_decode_str(s).decode_utf8_lossy().into_owned())
        .collect();
    let mut words: Vec<&str> = segments.iter().map(String::as_str).collect();
    if words.len() > 1 && words.last() == Some(&"") {
        words.pop(); // "/keys/n/" is how the SDKs ask for the latest version
    }
    if let Some(found) = sign_in(method, &words) {
        return Place::SignIn(found);
    }
    Place::Vault(match words.as_slice() {
        [first, rest @ ..] if first.eq_ignore_ascii_case("keys") => keys(method, rest),
        [first, rest @ ..] if first.eq_ignore_ascii_case("deletedkeys") => deleted_keys(method, rest),
        [first] if first.eq_ignore_ascii_case("rng") => only("POST", method, Route::Random),
        _ => Err(Unroutable::NotFound),
    })
}

fn sign_in(method: &str, words: &[&str]) -> Option<Result<SignInPlace, Unroutable>> {
    let is = |path: &[&str]| words.len() == path.len() + 1 && words[1..] == *path;
    if is(&["v2.0", ".well-known", "openid-configuration"]) {
        Some(only("GET", method, SignInPlace::Configuration))
    } else if is(&["discovery", "v2.0", "keys"]) {
        Some(only("GET", method, SignInPlace::SigningKeys))
    } else if is(&["oauth2", "v2.0", "token"]) {
        Some(only("POST", method, SignInPlace::Token))
    } else {
        None
    }
}

fn only<T>(wanted: &'static str, method: &str, found: T) -> Result<T, Unroutable> {
    if method == wanted { Ok(found) } else { Err(Unroutable::Method(wanted)) }
}

/// Below `/keys`.
fn keys(method: &str, words: &[&str]) -> Result<Route, Unroutable> {
    match *words {
        [] => only("GET", method, Route::List),
        // Not a name when something is posted to it, else a name like any other.
        [name] if method == "POST" && name.eq_ignore_ascii_case("restore") => Ok(Route::Restore),
        [name] => match method {
            "GET" => Ok(Route::Get(key(name, ""))),
            "PUT" => Ok(Route::Import(name.to_owned())),
            "PATCH" => Ok(Route::Update(key(name, ""))),
            "DELETE" => Ok(Route::Delete(name.to_owned())),
            _ => Err(Unroutable::Method("GET, PUT, PATCH, DELETE")),
        },
        [name, word] => match named(method, name, word) {
            Some(found) => found,
            None => match method {
                "GET" => Ok(Route::Get(key(name, word))),
                "PATCH" => Ok(Route::Update(key(name, word))),
                _ => Err(Unroutable::Method("GET, PATCH")),
            },
        },
        [name, version, word] => {
            with_version(method, name, version, word).unwrap_or(Err(Unroutable::NotFound))
        }
        _ => Err(Unroutable::NotFound),
    }
}

/// `/keys/N/WORD` where the word is not a version.
fn named(method: &str, name: &str, word: &str) -> Option<Result<Route, Unroutable>> {
    let n = || name.to_owned();
    Some(match word.to_ascii_lowercase().as_str() {
        "create" => only("POST", method, Route::Create(n())),
        "rotate" => only("POST", method, Route::Rotate(n())),
        "backup" => only("POST", method, Route::Backup(n())),
        "versions" => only("GET", method, Route::ListVersions(n())),
        "rotationpolicy" => match method {
            "GET" => Ok(Route::GetPolicy(n())),
            "PUT" => Ok(Route::SetPolicy(n())),
            _ => Err(Unroutable::Method("GET, PUT")),
        },
        _ => return with_version(method, name, "", word),
    })
}

/// `/keys/N/V/WORD`; an empty version is the latest.
fn with_version(method: &str, name: &str, version: &str, word: &str) -> Option<Result<Route, Unroutable>> {
    if let Ok(operation) = KeyOperation::parse(word) {
        return Some(only("POST", method, Route::Use(operation, key(name, version))));
    }
    Some(match word.to_ascii_lowercase().as_str() {
        "release" => only("POST", method, Route::Unsupported("Secure key release")),
        "attestation" => only("GET", method, Route::Unsupported("Key attestation")),
        "securewrapkey" | "secureunwrapkey" => {
            only("POST", method, Route::Unsupported("Secure key wrapping"))
        }
        _ => return None,
    })
}

/// Below `/deletedkeys`.
fn deleted_keys(method: &str, words: &[&str]) -> Result<Route, Unroutable> {
    match *words {
        [] => only("GET", method, Route::ListDeleted),
        [name] => match method {
            "GET" => Ok(Route::GetDeleted(name.to_owned())),
            "DELETE" => Ok(Route::Purge(name.to_owned())),
            _ => Err(Unroutable::Method("GET, DELETE")),
        },
        [name, word] if word.eq_ignore_ascii_case("recover") => {
            only("POST", method, Route::Recover(name.to_owned()))
        }
        _ => Err(Unroutable::NotFound),
    }
}

fn key(name: &str, version: &str) -> KeyRef {
    let version = (!version.is_empty()).then(|| version.to_ascii_lowercase());
    KeyRef { name: name.to_owned(), version }
}

/// The parameters that mean something, decoded: names as well as values, since one SDK sends `api%2Dversion`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    version: Option<String>,
    max_results: Option<String>,
    skip_token: Option<String>,
}

/// Which part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Begins behind this name or version.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Azure's largest page, and what is given when nothing is asked.
const MAX_PAGE: usize = 25;

impl Query {
    /// From the text behind the `?`. The first of two parameters of one name counts.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let slot = match name.to_ascii_lowercase().as_str() {
                "api-version" => &mut query.version,
                "maxresults" => &mut query.max_results,
                "$skiptoken" => &mut query.skip_token,
                _ => continue,
            };
            slot.get_or_insert_with(|| value.into_owned());
        }
        query
    }

    /// Any version that Azure ever had or may have: `7.5`, `2025-07-01`, with or without `-preview` and a number.
    ///
    /// # Errors
    /// None, or something else.
    pub fn api_version(&self) -> Result<&str, Malformed> {
        let Some(version) = &self.version else {
            return Err(Malformed::new("The request must contain an api-version query parameter."));
        };
        if valid_api_version(version) {
            return Ok(version);
        }
        Err(Malformed(format!("The specified version (\"{}\") is not recognized.", shown(version))))
    }

    /// # Errors
    /// `maxresults` is not 1 to 25, or the token is not one of ours.
    pub fn page(&self) -> Result<Page, Malformed> {
        let limit = match &self.max_results {
            None => MAX_PAGE,
            Some(text) => text.parse().ok().filter(|n| (1..=MAX_PAGE).contains(n)).ok_or_else(|| {
                Malformed(format!("maxresults: found \"{}\", allowed 1 to {MAX_PAGE}.", shown(text)))
            })?,
        };
        let after = self.skip_token.as_deref().map(after_token).transpose()?;
        Ok(Page { after, limit })
    }

    /// The rest of the link to the next page, behind the path.
    ///
    /// # Errors
    /// As [`Query::api_version`].
    pub fn next(&self, last: &str) -> Result<String, Malformed> {
        let mut link = form_urlencoded::Serializer::new(String::new());
        link.append_pair("api-version", self.api_version()?);
        // As Azure writes it, and some client may look for.
        let token = to_base64url(last.as_bytes());
        if let Some(max) = &self.max_results {
            link.append_pair("maxresults", max);
        }
        Ok(format!("?{}&$skiptoken={token}", link.finish()))
    }
}

fn after_token(token: &str) -> Result<String, Malformed> {
    let bad = || Malformed::new("The $skiptoken is invalid.");
    let bytes = super::from_base64url(token).map_err(|_| bad())?;
    let last = std::str::from_utf8(bytes.expose()).map_err(|_| bad())?;
    if valid_name(last) || valid_version(last) { Ok(last.to_owned()) } else { Err(bad()) }
}

/// `^(7\.\d+|\d{4}-\d\d-\d\d)(-preview(\.\d+)?)?$`
fn valid_api_version(version: &str) -> bool {
    let digits = |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let (main, preview) = match version.split_once("-preview") {
        Some((main, preview)) => (main, Some(preview)),
        None => (version, None),
    };
    if !preview.is_none_or(|p| p.is_empty() || p.strip_prefix('.').is_some_and(digits)) {
        return false;
    }
    if let Some(minor) = main.strip_prefix("7.") {
        return digits(minor);
    }
    let parts: Vec<&str> = main.split('-').collect();
    parts.iter().map(|p| p.len()).eq([4, 2, 2]) && parts.iter().all(|p| digits(p))
}
