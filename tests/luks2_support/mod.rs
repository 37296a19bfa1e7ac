//! A LUKS2 header written by other code than the product's: straight from the tables of ON-DISK.md sections 2 and 15, so
//! that the reader is not judged by the writer, and every byte can be made wrong.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod hostile;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::{Digest, Sha256};
use wrapdisk::secret::Secret;
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::{ByteLen, ByteOffset};
use wrapdisk::xts::VolumeKey;

/// ON-DISK section 15, as it stands there but for the line breaks.
pub(crate) const VECTOR_JSON: &str = include_str!("vector.json");
pub(crate) const VECTOR_UUID: &str = "6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31";
pub(crate) const HDR: usize = 16384;
/// Length of the vector's file: 16 MiB, and 8 MiB + 512 bytes in whole sectors.
pub(crate) const VECTOR_FILE: usize = 25_169_920;

/// SHA-512("wrapdisk test vector 1").
pub(crate) fn vector_key() -> VolumeKey {
    let key = Secret::try_from_fn(|out| {
        out.copy_from_slice(&sha2::Sha512::digest(b"wrapdisk test vector 1"));
        Ok(())
    });
    VolumeKey::new(key.expect("memory")).expect("two different halves")
}

/// The vector's JSON, to be changed.
pub(crate) fn vector_json() -> Value {
    serde_json::from_str(VECTOR_JSON).expect("the vector is JSON")
}

/// One copy's fields, each as its bytes lie in the file.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) magic: [u8; 6],
    pub(crate) version: u16,
    pub(crate) hdr_size: u64,
    pub(crate) seqid: u64,
    pub(crate) label: Vec<u8>,
    pub(crate) algorithm: Vec<u8>,
    pub(crate) salt: u8,
    pub(crate) uuid: Vec<u8>,
    pub(crate) subsystem: Vec<u8>,
    pub(crate) hdr_offset: u64,
    /// The JSON area's text; NULs follow.
    pub(crate) text: Vec<u8>,
}

impl Copy {
    pub(crate) fn primary(text: &str) -> Self {
        Self {
            magic: *b"LUKS\xba\xbe",
            version: 2,
            hdr_size: HDR as u64,
            seqid: 1,
            label: Vec::new(),
            algorithm: b"sha256".to_vec(),
            salt: 0xa1,
            uuid: VECTOR_UUID.into(),
            subsystem: b"wrapdisk".to_vec(),
            hdr_offset: 0,
            text: text.into(),
        }
    }

    /// The other copy of this one.
    pub(crate) fn secondary(&self) -> Self {
        Self { magic: *b"SKUL\xba\xbe", salt: 0xa2, hdr_offset: self.hdr_size, ..self.clone() }
    }

    /// Its bytes, with the checksum that belongs to them.
    pub(crate) fn bytes(&self, size: usize) -> Vec<u8> {
        let mut b = vec![0; size];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.magic);
        put(6, &self.version.to_be_bytes());
        put(8, &self.hdr_size.to_be_bytes());
        put(16, &self.seqid.to_be_bytes());
        put(24, &self.label);
        put(72, &self.algorithm);
        put(104, &[self.salt; 64]);
        put(168, &self.uuid);
        put(208, &self.subsystem);
        put(256, &self.hdr_offset.to_be_bytes());
        put(4096, &self.text);
        let sum = checksum(&b);
        b[448..480].copy_from_slice(&sum);
        b
    }
}

/// SHA-256 over the copy with bytes 448..512 zero.
pub(crate) fn checksum(copy: &[u8]) -> [u8; 32] {
    let mut copy = copy.to_vec();
    copy[448..512].fill(0);
    Sha256::digest(copy).into()
}

/// A whole container in memory from its two copies; `len` bytes long.
pub(crate) fn image(primary: &[u8], secondary: &[u8], len: usize) -> MemoryStore {
    let store = MemoryStore::from(Vec::new());
    store.set_len(ByteLen::new(len as u64).expect("small")).expect("memory");
    for (at, copy) in [(0, primary), (primary.len(), secondary)] {
        store.write_at(ByteOffset::new(at as u64).expect("small"), copy).expect("memory");
    }
    store
}

/// The vector's container with this JSON text in both copies.
pub(crate) fn with_text(text: &str) -> MemoryStore {
    let primary = Copy::primary(text);
    image(&primary.bytes(HDR), &primary.secondary().bytes(HDR), VECTOR_FILE)
}

/// The vector's container with a changed JSON.
pub(crate) fn with_json(change: impl FnOnce(&mut Value)) -> MemoryStore {
    let mut json = vector_json();
    change(&mut json);
    with_text(&json.to_string())
}

/// Bytes of one keyslot area.
pub(crate) const SLOT: u64 = 258_048;
/// Where the data of [`small_json`] begins: two headers and four keyslots.
pub(crate) const SMALL_DATA: u64 = 2 * HDR as u64 + 4 * SLOT;
/// Length of its file.
pub(crate) const SMALL_FILE: usize = 2 * HDR + 4 * 258_048 + 8192;

/// The vector in a file of a MiB, with MACs that fit: for tests that make many.
pub(crate) fn small_json() -> Value {
    let mut json = vector_json();
    json["config"]["keyslots_size"] = (4 * SLOT).to_string().into();
    json["segments"]["0"]["offset"] = SMALL_DATA.to_string().into();
    for id in ["0", "1"] {
        json["tokens"][id]["wrapdisk-size"] = "8192".into();
    }
    seal_macs(&mut json);
    json
}

/// Both copies with this text in a file of [`SMALL_FILE`] bytes.
pub(crate) fn small(text: &str) -> MemoryStore {
    let primary = Copy::primary(text);
    image(&primary.bytes(HDR), &primary.secondary().bytes(HDR), SMALL_FILE)
}

/// Puts into every token of ours the MAC of ON-DISK section 5, under the vector's key and uuid.
pub(crate) fn seal_macs(json: &mut Value) {
    let hmac = |key: &[u8], message: &[u8]| {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any key");
        mac.update(message);
        mac.finalize().into_bytes()
    };
    // RFC 5869: extract with a salt of zeros, expand to one block.
    let prk = hmac(&[0; 32], vector_key().secret().expose());
    let key = hmac(&prk, b"wrapdisk luks2 header v1\x01");
    let (segment, digest) = (json["segments"]["0"].clone(), json["digests"]["0"].clone());
    for (_, token) in json["tokens"].as_object_mut().into_iter().flatten() {
        if token["type"] != "wrapdisk-vault" {
            continue;
        }
        let mut message = format!("wrapdisk luks2 header v1\nuuid={VECTOR_UUID}\n");
        let mut line = |name: String, value: &Value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            message.push_str(&format!("{name}={text}\n"));
        };
        for name in ["kind", "size", "holes"] {
            line(name.into(), &token[format!("wrapdisk-{name}")]);
        }
        for name in ["type", "offset", "size", "iv_tweak", "encryption", "sector_size"] {
            line(format!("segment.{name}"), &segment[name]);
        }
        for name in ["type", "hash", "iterations", "salt", "digest"] {
            line(format!("digest.{name}"), &digest[name]);
        }
        for name in ["set", "kid", "alg", "wrapped-dek"] {
            line(format!("token.{name}"), &token[format!("wrapdisk-{name}")]);
        }
        token["wrapdisk-mac"] = base64(&hmac(&key, message.as_bytes())).into();
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A keyslot object as cryptsetup writes it, in the n-th area.
pub(crate) fn slot(n: u64) -> Value {
    serde_json::json!({
        "type": "luks2", "key_size": 64,
        "af": { "type": "luks1", "stripes": 4000, "hash": "sha256" },
        "area": { "type": "raw", "offset": (2 * HDR as u64 + n * SLOT).to_string(), "size": SLOT.to_string(),
            "encryption": "aes-xts-plain64", "key_size": 64 },
        "kdf": { "type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": base64(&[7; 32]) },
    })
}

/// [`small_json`] with these keyslots, bound to the digest.
pub(crate) fn json_with_slots(slots: &[Value]) -> Value {
    let mut json = small_json();
    for (n, slot) in slots.iter().enumerate() {
        json["keyslots"][n.to_string()] = slot.clone();
        json["digests"]["0"]["keyslots"].as_array_mut().expect("a list").push(n.to_string().into());
    }
    json
}
