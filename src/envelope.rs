//! The envelope: what a container stores of its wrapped data key and every vault understands. Key identifiers
//! (`https://HOST[:PORT]/keys/NAME/VERSION`), the wrap algorithm, and the wrapped key itself.
//!
//! Must never see: anything of the crate but errors. Key identifiers come from headers: they are hostile input and are
//! parsed once, here.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// Longest accepted identifier in bytes (ON-DISK section 4).
pub const MAX_KID: usize = 512;

/// One version of one key in one vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kid {
    text: String,
    host: std::ops::Range<usize>,
    name: std::ops::Range<usize>,
    version: std::ops::Range<usize>,
}

/// A key, perhaps at a version: what administration commands take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRef {
    /// 1..127 of `[0-9A-Za-z-]`, compared without case.
    pub name: String,
    /// 32 lower-case hex digits; `None` = the latest.
    pub version: Option<String>,
}

/// 1..=127 of `[0-9A-Za-z-]`.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    (1..=127).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// 1..=64 of `[0-9A-Za-z]`.
#[must_use]
pub fn valid_version(version: &str) -> bool {
    (1..=64).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && port.is_none_or(|p| {
            (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok()
        })
}

impl Kid {
    /// Parses exactly the form above: no user, query, fragment, empty segment or trailing slash.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        Self::split(text).ok_or_else(|| {
            let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
            Error::new(
                ErrorKind::InvalidInput,
                format!("key identifier: found \"{shown}\", allowed https://HOST[:PORT]/keys/NAME/VERSION"),
            )
        })
    }

    fn split(text: &str) -> Option<Self> {
        if text.len() > MAX_KID {
            return None;
        }
        let rest = text.strip_prefix("https://")?;
        let (host, path) = rest.split_once('/')?;
        let (name, version) = path.strip_prefix("keys/")?.split_once('/')?;
        if !valid_host(host) || !valid_name(name) || !valid_version(version) {
            return None;
        }
        let host_start = "https://".len();
        let name_start = host_start + host.len() + "/keys/".len();
        let version_start = name_start + name.len() + 1;
        Some(Self {
            text: text.to_owned(),
            host: host_start..host_start + host.len(),
            name: name_start..name_start + name.len(),
            version: version_start..text.len(),
        })
    }

    /// The kid of a key in the embedded vault (RULINGS 8).
    ///
    /// # Errors
    /// `InvalidInput` for a bad name or version.
    pub fn local(vault: &uuid::Uuid, name: &str, version: &str) -> Result<Self> {
        Self::parse(&format!("https://{vault}.vault.localhost/keys/{name}/{version}"))
    }

    /// The whole URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.text[self.host.clone()]
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name.clone()]
    }

    /// The key's version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.text[self.version.clone()]
    }

    /// The URL without the version.
    #[must_use]
    pub fn versionless(&self) -> &str {
        &self.text[..self.version.start - 1]
    }
}

impl std::str::FromStr for Kid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// How a data key is wrapped. A container and a client know this one only (RULINGS 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrapAlg {
    /// RSAES-OAEP (RFC 8017 7.1) with SHA-256, MGF1-SHA-256, empty label.
    RsaOaep256,
}

impl WrapAlg {
    /// The name in containers and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
        }
    }
}

/// A data key under one version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedDek {
    /// Always with version.
    pub kid: Kid,
    /// How.
    pub alg: WrapAlg,
    /// The RSA ciphertext: 256, 384 or 512 bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl KeyRef {
    /// `NAME` or `NAME/VERSION`.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, version) = match text.split_once('/') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if !valid_name(name) || version.is_some_and(|v| !valid_version(v)) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "key: found \"{}\", allowed NAME or NAME/VERSION with 1 to 127 of [0-9A-Za-z-]",
                    text.escape_debug()
                ),
            ));
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_lowercase) })
    }
}

impl From<&Kid> for KeyRef {
    fn from(kid: &Kid) -> Self {
        Self { name: kid.name().to_owned(), version: Some(kid.version().to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_as_they_went_in() {
        let k = Kid::parse("https://demo.vault.example:8443/keys/disk-kek/0123abCD").unwrap();
        assert_eq!((k.host(), k.name(), k.version()), ("demo.vault.example:8443", "disk-kek", "0123abCD"));
        assert_eq!(k.versionless(), "https://demo.vault.example:8443/keys/disk-kek");
    }

    #[test]
    fn anything_but_the_exact_form_is_refused() {
        for bad in [
            "",
            "http://h/keys/n/1",
            "https:///keys/n/1",
            "https://u@h/keys/n/1",
            "https://h/keys/n",
            "https://h/keys/n/",
            "https://h/keys/n/1/",
            "https://h/keys/n/1?x",
            "https://h/keys/n/1#x",
            "https://h/secrets/n/1",
            "https://h:0x/keys/n/1",
            "https://h:99999/keys/n/1",
            "https://h:/keys/n/1",
            "https://h/keys/n_/1",
            "https://h/keys//1",
            "https://h\n/keys/n/1",
            "https://h\u{e9}/keys/n/1",
        ] {
            assert!(Kid::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Kid::parse(&format!("https://h/keys/n/{}", "1".repeat(65))).is_err());
        assert!(Kid::parse(&format!("https://{}/keys/n/1", "h".repeat(600))).is_err());
    }
}
