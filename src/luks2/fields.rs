//! Reading members of a JSON object by name, each with the refusal that names it; and refusing those nobody asked for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::json::type_name;
use super::refuse::{damaged, quoted};
use crate::error::Result;
use crate::units::MAX_BYTES;

/// A view of one object: `path` is what messages call it, `segments.0`.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: impl Into<String>, value: &'a Value) -> Result<Self> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(damaged(path, type_name(other), "an object")),
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// Refuses members outside `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<()> {
        match self.map.keys().find(|k| !known.contains(&k.as_str())) {
            None => Ok(()),
            Some(odd) => {
                Err(damaged(&self.path, format!("an unknown member {}", quoted(odd)), known.join(", ")))
            }
        }
    }

    /// Refuses members that begin with `prefix` and are not in `known`.
    pub(super) fn only_of(&self, prefix: &str, known: &[&str]) -> Result<()> {
        match self.map.keys().find(|k| k.starts_with(prefix) && !known.contains(&k.as_str())) {
            None => Ok(()),
            Some(odd) => {
                Err(damaged(&self.path, format!("an unknown member {}", quoted(odd)), known.join(", ")))
            }
        }
    }

    pub(super) fn optional(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name)
    }

    pub(super) fn value(&self, name: &str) -> Result<&'a Value> {
        self.map.get(name).ok_or_else(|| damaged(self.path(name), "nothing", "a value"))
    }

    pub(super) fn object(&self, name: &str) -> Result<Self> {
        Self::new(self.path(name), self.value(name)?)
    }

    pub(super) fn string(&self, name: &str) -> Result<&'a str> {
        match self.value(name)? {
            Value::String(s) => Ok(s),
            other => Err(damaged(self.path(name), type_name(other), "a string")),
        }
    }

    pub(super) fn integer(&self, name: &str) -> Result<u32> {
        match self.value(name)? {
            // The strict parser lets 0 ..= 2^31-1 through only.
            Value::Number(n) => Ok(n.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX)),
            other => Err(damaged(self.path(name), type_name(other), "an integer")),
        }
    }

    /// A 64-bit number as a JSON string: digits only, no leading zero, at most 2^63-1.
    pub(super) fn u64s(&self, name: &str) -> Result<u64> {
        let text = self.string(name)?;
        text.parse::<u64>().ok().filter(|n| *n <= MAX_BYTES && n.to_string() == text).ok_or_else(|| {
            damaged(self.path(name), quoted(text), "a decimal number of at most 2^63-1 in a string")
        })
    }

    /// Canonical base64 of as many bytes as `len` allows.
    pub(super) fn base64(&self, name: &str, len: std::ops::RangeInclusive<usize>) -> Result<Vec<u8>> {
        let text = self.string(name)?;
        let bytes = STANDARD.decode(text).ok().filter(|bytes| STANDARD.encode(bytes) == text);
        let bytes = bytes.ok_or_else(|| damaged(self.path(name), quoted(text), "base64 with padding"))?;
        if !len.contains(&bytes.len()) {
            let allowed = if len.start() == len.end() {
                len.start().to_string()
            } else {
                format!("{} to {}", len.start(), len.end())
            };
            return Err(damaged(self.path(name), format!("{} bytes", bytes.len()), allowed));
        }
        Ok(bytes)
    }

    /// An array of names.
    pub(super) fn names(&self, name: &str) -> Result<Vec<&'a str>> {
        let refuse = |found: &str| damaged(self.path(name), found, "an array of strings");
        match self.value(name)? {
            Value::Array(items) => {
                items.iter().map(|i| i.as_str().ok_or_else(|| refuse(type_name(i)))).collect()
            }
            other => Err(refuse(type_name(other))),
        }
    }
}

pub(super) fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
