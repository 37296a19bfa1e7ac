//! The JSON objects as types (ON-DISK section 4). Parsed from the JSON after every change to it, so that what is written
//! is never something we would refuse to read.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::binary::BINARY_SIZE;
use super::fields::Fields;
use super::hash::Hash;
use super::json::number_name;
use super::keyslot::Keyslot;
use super::refuse::{damaged, quoted, unsupported};
use super::token::{self, VaultToken};
use crate::error::Result;
use crate::units::{ByteOffset, Extent, SectorSize};

/// Where the data lies and in which units it is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte in the store.
    pub offset: ByteOffset,
    /// XTS data unit.
    pub sector_size: SectorSize,
}

/// PBKDF2 over the volume key: tells the right key from a wrong one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) name: String,
    pub(super) hash: Hash,
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) digest: Vec<u8>,
}

/// Everything a valid JSON area says that we interpret.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) segment: Segment,
    pub(super) digest: Digest,
    pub(super) keyslots: BTreeMap<u32, Keyslot>,
    pub(super) tokens: BTreeMap<u32, VaultToken>,
    pub(super) foreign: Vec<(u32, String)>,
    pub(super) keyslots_size: u64,
    pub(super) discards: bool,
}

const LUKS1_DIGEST: usize = 20;

/// Largest keyslots area (cryptsetup's limit as well).
const MAX_KEYSLOTS_SIZE: u64 = 128 << 20;

impl Model {
    /// Interprets a strictly parsed JSON area of a header of `hdr_size` bytes per copy.
    ///
    /// # Errors
    /// Refusals 4 to 8 of ON-DISK section 8.
    pub(super) fn parse(json: &Map<String, Value>, hdr_size: u64) -> Result<Self> {
        let (keyslots_size, discards) = config(&json["config"], hdr_size)?;
        let area_end = 2 * hdr_size + keyslots_size;
        let segment = segment(&json["segments"], area_end)?;
        let keyslots = keyslots(&json["keyslots"], hdr_size, area_end)?;
        let digest = digest(&json["digests"], &keyslots)?;
        let (tokens, foreign) = tokens(&json["tokens"], &keyslots)?;
        Ok(Self { segment, digest, keyslots, tokens, foreign, keyslots_size, discards })
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn config(value: &Value, hdr_size: u64) -> Result<(u64, bool)> {
    let config = Fields::new("config", value)?;
    let json_size = config.u64s("json_size")?;
    let expected = hdr_size - BINARY_SIZE as u64;
    if json_size != expected {
        return Err(damaged("config.json_size", json_size, expected));
    }
    let keyslots_size = config.u64s("keyslots_size")?;
    if !keyslots_size.is_multiple_of(4096) || keyslots_size > MAX_KEYSLOTS_SIZE {
        return Err(damaged("config.keyslots_size", keyslots_size, "a multiple of 4096, at most 128 MiB"));
    }
    requirements(&config)?;
    let discards = match config.optional("flags") {
        None => false,
        Some(_) => config.names("flags")?.contains(&"allow-discards"),
    };
    Ok((keyslots_size, discards))
}

/// Absent, or `{"mandatory":[]}`.
fn requirements(config: &Fields<'_>) -> Result<()> {
    if config.optional("requirements").is_none() {
        return Ok(());
    }
    let requirements = config.object("requirements")?;
    requirements.only(&["mandatory"])?;
    match requirements.names("mandatory")?.first() {
        None => Ok(()),
        Some(found) => Err(unsupported("config.requirements.mandatory", quoted(found), "none")
            .hint("finish with: cryptsetup reencrypt --resume-only")),
    }
}

/// The one member of `value`, under any name or under "0".
fn only_member<'a>(what: &str, value: &'a Value) -> Result<(&'a String, &'a Value)> {
    let mut all = members(value);
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(unsupported(what, format!("{} members", members(value).count()), "exactly one")),
    }
}

fn segment(value: &Value, area_end: u64) -> Result<Segment> {
    let (name, value) = only_member("segments", value)?;
    if name != "0" {
        return Err(unsupported("segments", format!("a member {}", quoted(name)), "\"0\""));
    }
    let segment = Fields::new("segments.0", value)?;
    let is = |name: &str, allowed: &str| match segment.string(name)? {
        found if found == allowed => Ok(()),
        found => Err(unsupported(segment.path(name), quoted(found), quoted(allowed))),
    };
    is("type", "crypt")?;
    segment.only(&["type", "offset", "size", "iv_tweak", "encryption", "sector_size"]).map_err(
        |e| match () {
            () if segment.optional("integrity").is_some() => {
                unsupported("segments.0.integrity", "a value", "nothing")
            }
            () if segment.optional("flags").is_some() => {
                unsupported("segments.0.flags", "a value", "nothing")
            }
            () => e,
        },
    )?;
    is("encryption", "aes-xts-plain64")?;
    is("size", "dynamic")?;
    is("iv_tweak", "0")?;
    let sector_size = segment.integer("sector_size")?;
    let sector_size = SectorSize::from_bytes(u64::from(sector_size))
        .ok_or_else(|| unsupported("segments.0.sector_size", sector_size, "4096 or 512"))?;
    let offset = segment.u64s("offset")?;
    match ByteOffset::new(offset).filter(|o| o.get().is_multiple_of(4096) && o.get() >= area_end) {
        Some(offset) => Ok(Segment { offset, sector_size }),
        None => Err(damaged("segments.0.offset", offset, format!("a multiple of 4096, at least {area_end}"))),
    }
}

fn digest(value: &Value, keyslots: &BTreeMap<u32, Keyslot>) -> Result<Digest> {
    let (name, value) = only_member("digests", value)?;
    let path = format!("digests.{name}");
    let digest = Fields::new(&path, value)?;
    digest.only(&["type", "keyslots", "segments", "hash", "iterations", "salt", "digest"])?;
    match digest.string("type")? {
        "pbkdf2" => {}
        other => return Err(unsupported(digest.path("type"), quoted(other), quoted("pbkdf2"))),
    }
    let hash = Hash::parse(&digest)?;
    let iterations = digest.integer("iterations")?;
    if !(1000..=10_000_000).contains(&iterations) {
        return Err(damaged(digest.path("iterations"), iterations, "1000 to 10000000"));
    }
    let segments = digest.names("segments")?;
    if segments != ["0"] {
        return Err(damaged(digest.path("segments"), quoted(&segments.join(" ")), "\"0\""));
    }
    bound_keyslots(&digest, keyslots)?;
    Ok(Digest {
        name: name.clone(),
        hash,
        iterations,
        salt: digest.base64("salt", 16..=64)?,
        digest: digest_value(&digest, hash)?,
    })
}

/// As long as the hash; of LUKS1, 20 bytes, which `cryptsetup convert` keeps.
fn digest_value(digest: &Fields<'_>, hash: Hash) -> Result<Vec<u8>> {
    let value = digest.base64("digest", 0..=usize::MAX)?;
    if value.len() == hash.len() || value.len() == LUKS1_DIGEST {
        return Ok(value);
    }
    let allowed = format!("{LUKS1_DIGEST} or {}", hash.len());
    Err(damaged(digest.path("digest"), format!("{} bytes", value.len()), allowed))
}

/// Every name exists, and every keyslot is named: an unbound one could not be checked against the volume key.
fn bound_keyslots(digest: &Fields<'_>, keyslots: &BTreeMap<u32, Keyslot>) -> Result<()> {
    let named = digest.names("keyslots")?;
    if let Some(odd) = named.iter().find(|n| number_name(n).is_none_or(|n| !keyslots.contains_key(&n))) {
        return Err(damaged(digest.path("keyslots"), quoted(odd), "names of keyslots"));
    }
    match keyslots.keys().find(|k| !named.contains(&k.to_string().as_str())) {
        None => Ok(()),
        Some(unbound) => {
            Err(damaged(format!("keyslots.{unbound}"), "no digest for it", "each keyslot in the digest"))
        }
    }
}

fn keyslots(value: &Value, hdr_size: u64, area_end: u64) -> Result<BTreeMap<u32, Keyslot>> {
    let room =
        Extent::from_raw(2 * hdr_size, area_end - 2 * hdr_size).expect("at most 128 MiB behind 256 KiB");
    let mut slots: BTreeMap<u32, Keyslot> = BTreeMap::new();
    for (name, value) in members(value) {
        let id = number_name(name).expect("names were checked by the strict parser");
        let slot = Keyslot::parse(id, value)?;
        if !room.contains(slot.area) {
            return Err(damaged(
                format!("keyslots.{id}.area"),
                slot.area,
                format!("within the keyslots area {room}"),
            ));
        }
        if let Some((other, _)) = slots.iter().find(|(_, s)| s.area.overlaps(slot.area)) {
            return Err(damaged(
                format!("keyslots.{id}.area"),
                slot.area,
                format!("no overlap with keyslot {other}"),
            ));
        }
        slots.insert(id, slot);
    }
    Ok(slots)
}

type Tokens = (BTreeMap<u32, VaultToken>, Vec<(u32, String)>);

fn tokens(value: &Value, keyslots: &BTreeMap<u32, Keyslot>) -> Result<Tokens> {
    let (mut ours, mut foreign) = (BTreeMap::new(), Vec::new());
    for (name, value) in members(value) {
        let id = number_name(name).expect("names were checked by the strict parser");
        let fields = Fields::new(format!("tokens.{id}"), value)?;
        let kind = fields.string("type")?;
        if kind == token::TYPE {
            ours.insert(id, VaultToken::parse(&fields, keyslots)?);
        } else {
            fields.names("keyslots")?;
            foreign.push((id, kind.to_owned()));
        }
    }
    token::check_agreement(&ours)?;
    Ok((ours, foreign))
}
