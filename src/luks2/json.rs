//! The JSON area (ON-DISK section 3): strict where parsers disagree. Duplicate member names, numbers that are not small
//! unsigned integers, deep nesting and trailing bytes are refused before anything is interpreted.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::refuse::{damaged, quoted};
use crate::error::Result;

/// Deepest nesting of objects and arrays.
const MAX_DEPTH: u8 = 10;
/// Largest JSON integer.
const MAX_INTEGER: u64 = (1 << 31) - 1;
/// Members of `keyslots`, `tokens`, `segments`, `digests`.
const MAX_MEMBERS: usize = 32;

/// Parses a JSON area: text, then NULs to the end.
///
/// # Errors
/// Refusal 3 of ON-DISK section 8.
pub(super) fn parse(area: &[u8]) -> Result<Map<String, Value>> {
    let end = area
        .iter()
        .position(|b| *b == 0)
        .ok_or_else(|| damaged("json", "no NUL at its end", "at least one"))?;
    let (text, rest) = area.split_at(end);
    if let Some(at) = rest.iter().position(|b| *b != 0) {
        return Err(damaged("json", format!("a byte {:#04x} after the text", rest[at]), "NULs only"));
    }
    let text = std::str::from_utf8(text)
        .map_err(|e| damaged("json", format!("bytes that are not UTF-8 at {}", e.valid_up_to()), "UTF-8"))?;
    if !text.starts_with('{') {
        let start: String = text.chars().take(1).collect();
        return Err(damaged("json", quoted(&start), "\"{\" as its first byte"));
    }
    let refused = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let strict = Strict { depth: 1, refused: &refused };
    let value = strict.deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    match value {
        Ok(Value::Object(map)) => check_top(map),
        Ok(other) => Err(damaged("json", type_name(&other), "an object")),
        Err(e) => Err(match refused.into_inner() {
            Some(Refused { found, allowed }) => {
                damaged("json", format!("{found} at byte {}", offset(text, &e)), allowed)
            }
            None => damaged("json", format!("\"{e}\""), "JSON (RFC 8259)"),
        }),
    }
}

/// Where the parser stopped, counted from 0.
fn offset(text: &str, e: &serde_json::Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
    (before + e.column()).saturating_sub(1)
}

fn check_top(map: Map<String, Value>) -> Result<Map<String, Value>> {
    for name in ["keyslots", "tokens", "segments", "digests", "config"] {
        let found = match map.get(name) {
            Some(Value::Object(_)) => continue,
            Some(other) => type_name(other),
            None => "nothing",
        };
        return Err(damaged(name, found, "an object"));
    }
    for name in ["keyslots", "tokens", "segments", "digests"] {
        let members = map[name].as_object().expect("checked above");
        if members.len() > MAX_MEMBERS {
            return Err(damaged(name, format!("{} members", members.len()), "at most 32"));
        }
        if let Some(bad) = members.keys().find(|k| number_name(k).is_none()) {
            return Err(damaged(name, format!("a member {}", quoted(bad)), "\"0\" to \"31\""));
        }
    }
    Ok(map)
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// "0" to "31" without leading zeros.
pub(super) fn number_name(name: &str) -> Option<u32> {
    let n: u32 = name.parse().ok()?;
    (n < 32 && n.to_string() == name).then_some(n)
}

/// What a strict reader refuses although it is JSON.
struct Refused {
    found: String,
    allowed: &'static str,
}

#[derive(Clone, Copy)]
struct Strict<'r> {
    /// Of the value that comes, the outermost being 1.
    depth: u8,
    /// Where a refusal waits while serde carries an error of its own.
    refused: &'r RefCell<Option<Refused>>,
}

impl<'r> Strict<'r> {
    fn refuse<E: serde::de::Error>(self, found: String, allowed: &'static str) -> E {
        self.refused.replace(Some(Refused { found, allowed }));
        E::custom("refused")
    }

    fn number<E: serde::de::Error>(self, found: impl fmt::Display) -> E {
        self.refuse(found.to_string(), "integers from 0 to 2147483647")
    }

    /// The reader of what an object or array at this depth holds.
    fn deeper<E: serde::de::Error>(self) -> std::result::Result<Strict<'r>, E> {
        if self.depth > MAX_DEPTH {
            return Err(self.refuse(format!("a level {}", self.depth), "at most 10 levels"));
        }
        Ok(Strict { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> std::result::Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> std::result::Result<Value, E> {
        if n > MAX_INTEGER { Err(self.number(n)) } else { Ok(Value::Number(Number::from(n))) }
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> std::result::Result<Value, E> {
        Err(self.number(n))
    }

    /// Fractions, exponents, -0 and what is too large for 64 bits.
    fn visit_f64<E: serde::de::Error>(self, n: f64) -> std::result::Result<Value, E> {
        Err(self.number(format_args!("the number {n:?}")))
    }

    fn visit_str<E>(self, s: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(s.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(self.refuse(format!("a second member {}", quoted(&name)), "one of each name"));
            }
            let value = map.next_value_seed(inner)?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}
