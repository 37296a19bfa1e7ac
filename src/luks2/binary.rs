//! The binary header: the first 4096 bytes of each copy (ON-DISK section 2). All integers are big-endian.

use sha2::{Digest, Sha256};

use super::refuse::{damaged, quoted, unsupported};
use crate::error::{Error, Result};
use crate::secret;

/// Bytes before the JSON area.
pub(super) const BINARY_SIZE: usize = 4096;
/// What we write; also where cryptsetup's default puts the secondary.
pub(super) const DEFAULT_SIZE: u64 = 16384;
/// Header sizes that may be, and so offsets where a secondary may be.
pub(super) const SIZES: [u64; 4] = [16384, 32768, 65536, 131_072];

const MAGIC_PRIMARY: &[u8; 6] = b"LUKS\xba\xbe";
const MAGIC_SECONDARY: &[u8; 6] = b"SKUL\xba\xbe";
const VERSION: std::ops::Range<usize> = 6..8;
const HDR_SIZE: std::ops::Range<usize> = 8..16;
const SEQID: std::ops::Range<usize> = 16..24;
const LABEL: std::ops::Range<usize> = 24..72;
const CHECKSUM_ALG: std::ops::Range<usize> = 72..104;
const SALT: std::ops::Range<usize> = 104..168;
const UUID: std::ops::Range<usize> = 168..208;
const SUBSYSTEM: std::ops::Range<usize> = 208..256;
const HDR_OFFSET: std::ops::Range<usize> = 256..264;
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Primary,
    Secondary,
}

impl Which {
    const fn magic(self) -> &'static [u8; 6] {
        match self {
            Self::Primary => MAGIC_PRIMARY,
            Self::Secondary => MAGIC_SECONDARY,
        }
    }
}

/// The fields of a valid binary header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) hdr_size: u64,
    pub(super) seqid: u64,
    pub(super) label: String,
    pub(super) uuid: String,
    pub(super) subsystem: String,
}

fn u64_at(bytes: &[u8], at: std::ops::Range<usize>) -> u64 {
    u64::from_be_bytes(bytes[at].try_into().expect("the field has 8 bytes"))
}

/// True when `bytes` begin with a LUKS magic, and the version after it.
pub(super) fn version(bytes: &[u8]) -> Option<u16> {
    let magic = bytes.get(..6)?;
    if magic != MAGIC_PRIMARY && magic != MAGIC_SECONDARY {
        return None;
    }
    Some(u16::from_be_bytes(bytes.get(VERSION)?.try_into().ok()?))
}

impl Binary {
    /// Parses the first 4096 bytes of the copy that lies at `place`.
    ///
    /// # Errors
    /// The refusals 1 and 2 of ON-DISK section 8.
    pub(super) fn parse(bytes: &[u8; BINARY_SIZE], which: Which, place: u64) -> Result<Self> {
        if &bytes[..6] != which.magic() {
            return Err(damaged(
                "magic",
                format!("{:02x?}", &bytes[..6]),
                "LUKS\\xba\\xbe or SKUL\\xba\\xbe in its place",
            ));
        }
        let version = u16::from_be_bytes([bytes[6], bytes[7]]);
        if version != 2 {
            let e = unsupported("version", version, 2);
            return Err(if version == 1 {
                e.hint("convert it with: cryptsetup convert --type luks2")
            } else {
                e
            });
        }
        let hdr_size = u64_at(bytes, HDR_SIZE);
        if !SIZES.contains(&hdr_size) {
            return Err(damaged("hdr_size", hdr_size, "16384, 32768, 65536 or 131072"));
        }
        let seqid = u64_at(bytes, SEQID);
        if seqid == 0 || i64::try_from(seqid).is_err() {
            return Err(damaged("seqid", seqid, "1 to 2^63-1"));
        }
        let algorithm = text(bytes, CHECKSUM_ALG, "checksum algorithm")?;
        if algorithm != "sha256" {
            return Err(unsupported("checksum algorithm", quoted(&algorithm), "\"sha256\""));
        }
        let uuid = text(bytes, UUID, "uuid")?;
        if !is_canonical_uuid(&uuid) {
            return Err(damaged("uuid", quoted(&uuid), "36 characters, lower case, canonical"));
        }
        let hdr_offset = u64_at(bytes, HDR_OFFSET);
        let expected = if which == Which::Primary { 0 } else { place };
        let in_place = which == Which::Primary || place == hdr_size;
        if hdr_offset != expected || !in_place {
            return Err(damaged(
                "hdr_offset",
                hdr_offset,
                if which == Which::Primary { 0 } else { hdr_size },
            ));
        }
        Ok(Self {
            hdr_size,
            seqid,
            label: text(bytes, LABEL, "label")?,
            uuid,
            subsystem: text(bytes, SUBSYSTEM, "subsystem")?,
        })
    }

    /// One whole copy: binary header, JSON text, NULs; with a fresh salt and its checksum.
    ///
    /// # Errors
    /// The JSON does not fit, or there is no random generator.
    pub(super) fn build(&self, which: Which, json: &str) -> Result<Vec<u8>> {
        let mut salt = [0; 64];
        secret::random(&mut salt)?;
        self.build_with_salt(which, json, &salt)
    }

    pub(super) fn build_with_salt(&self, which: Which, json: &str, salt: &[u8; 64]) -> Result<Vec<u8>> {
        let size = usize::try_from(self.hdr_size).expect("at most 128 KiB");
        if json.len() > size - BINARY_SIZE - 1 {
            return Err(unsupported(
                "header",
                format!("{} bytes of JSON", json.len()),
                format!("at most {}: header is full", size - BINARY_SIZE - 1),
            ));
        }
        let mut copy = vec![0; size];
        copy[..6].copy_from_slice(which.magic());
        copy[VERSION].copy_from_slice(&2u16.to_be_bytes());
        copy[HDR_SIZE].copy_from_slice(&self.hdr_size.to_be_bytes());
        copy[SEQID].copy_from_slice(&self.seqid.to_be_bytes());
        put(&mut copy[LABEL], &self.label);
        put(&mut copy[CHECKSUM_ALG], "sha256");
        copy[SALT].copy_from_slice(salt);
        put(&mut copy[UUID], &self.uuid);
        put(&mut copy[SUBSYSTEM], &self.subsystem);
        let offset = if which == Which::Primary { 0 } else { self.hdr_size };
        copy[HDR_OFFSET].copy_from_slice(&offset.to_be_bytes());
        copy[BINARY_SIZE..][..json.len()].copy_from_slice(json.as_bytes());
        let sum = checksum(&copy);
        copy[CHECKSUM][..32].copy_from_slice(&sum);
        Ok(copy)
    }
}

/// SHA-256 over the copy with its checksum field zeroed: finds torn writes, not attackers.
pub(super) fn checksum(copy: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&copy[..CHECKSUM.start]);
    hash.update([0; 64]);
    hash.update(&copy[CHECKSUM.end..]);
    hash.finalize().into()
}

/// Does a whole copy carry its own checksum?
pub(super) fn check_sum(copy: &[u8]) -> Result<()> {
    if copy[CHECKSUM][..32] == checksum(copy) {
        return Ok(());
    }
    Err(damaged("checksum", "another one", "the SHA-256 of the header"))
}

fn put(field: &mut [u8], text: &str) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// A NUL-terminated, printable string.
fn text(bytes: &[u8], at: std::ops::Range<usize>, name: &str) -> Result<String> {
    let field = &bytes[at];
    let refuse = |found: &[u8]| -> Error {
        damaged(name, quoted(&String::from_utf8_lossy(found)), "printable text that ends with a NUL")
    };
    let end = field.iter().position(|b| *b == 0).ok_or_else(|| refuse(field))?;
    match std::str::from_utf8(&field[..end]) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(refuse(&field[..end])),
    }
}

/// The label we were given fits its field.
pub(super) fn check_label(label: &str) -> Result<()> {
    if label.len() < LABEL.len() && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(
        crate::error::ErrorKind::InvalidInput,
        format!("label: found {} bytes ({}), allowed at most 47 printable ones", label.len(), quoted(label)),
    ))
}

fn is_canonical_uuid(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok_and(|u| u.hyphenated().to_string() == text)
}
