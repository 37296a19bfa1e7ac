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
/// The format goes on to 4 MiB; nobody needs so much JSON, and it is all hostile.
const LARGER_SIZES: [u64; 5] = [256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

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
    pub(super) const fn magic(self) -> &'static [u8; 6] {
        match self {
            Self::Primary => MAGIC_PRIMARY,
            Self::Secondary => MAGIC_SECONDARY,
        }
    }

    pub(super) const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }

    /// Where this copy lies.
    pub(super) const fn place(self, hdr_size: u64) -> u64 {
        match self {
            Self::Primary => 0,
            Self::Secondary => hdr_size,
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

impl Binary {
    /// Parses the first 4096 bytes of the copy that lies at `place`.
    ///
    /// # Errors
    /// The refusals 1 and 2 of ON-DISK section 8.
    pub(super) fn parse(bytes: &[u8; BINARY_SIZE], which: Which, place: u64) -> Result<Self> {
        if &bytes[..6] != which.magic() {
            let shown = |magic: &[u8]| format!("\"{}\"", magic.escape_ascii());
            return Err(damaged("magic", shown(&bytes[..6]), shown(which.magic())));
        }
        let version = u16::from_be_bytes([bytes[6], bytes[7]]);
        if version != 2 {
            return Err(match version {
                0 => damaged("version", 0, 2),
                _ => unsupported("version", version, 2),
            });
        }
        let hdr_size = u64_at(bytes, HDR_SIZE);
        if !SIZES.contains(&hdr_size) {
            let allowed = "16384, 32768, 65536 or 131072";
            return Err(if LARGER_SIZES.contains(&hdr_size) {
                unsupported("hdr_size", hdr_size, allowed)
            } else {
                damaged("hdr_size", hdr_size, allowed)
            });
        }
        let seqid = u64_at(bytes, SEQID);
        if seqid == 0 || i64::try_from(seqid).is_err() {
            return Err(damaged("seqid", seqid, "1 to 2^63-1"));
        }
        let algorithm = text(bytes, CHECKSUM_ALG, "checksum algorithm")?;
        if algorithm != "sha256" {
            let (found, allowed) = (quoted(&algorithm), "\"sha256\"");
            return Err(match algorithm.as_str() {
                "" => damaged("checksum algorithm", found, allowed),
                _ => unsupported("checksum algorithm", found, allowed),
            });
        }
        let uuid = text(bytes, UUID, "uuid")?;
        if !is_canonical_uuid(&uuid) {
            return Err(damaged("uuid", quoted(&uuid), "36 characters, lower case, canonical"));
        }
        let hdr_offset = u64_at(bytes, HDR_OFFSET);
        if hdr_offset != place {
            return Err(damaged("hdr_offset", hdr_offset, place));
        }
        if place != which.place(hdr_size) {
            return Err(damaged("hdr_size", hdr_size, format!("{place}, where this copy lies")));
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
    /// There is no random generator, or the JSON does not fit.
    pub(super) fn build(&self, which: Which, json: &[u8]) -> Result<Vec<u8>> {
        self.check_fits(json.len())?;
        let mut salt = [0; 64];
        secret::random(&mut salt)?;
        let size = usize::try_from(self.hdr_size).expect("at most 128 KiB");
        let mut copy = vec![0; size];
        copy[..6].copy_from_slice(which.magic());
        copy[VERSION].copy_from_slice(&2u16.to_be_bytes());
        copy[HDR_SIZE].copy_from_slice(&self.hdr_size.to_be_bytes());
        copy[SEQID].copy_from_slice(&self.seqid.to_be_bytes());
        put(&mut copy[LABEL], &self.label);
        put(&mut copy[CHECKSUM_ALG], "sha256");
        copy[SALT].copy_from_slice(&salt);
        put(&mut copy[UUID], &self.uuid);
        put(&mut copy[SUBSYSTEM], &self.subsystem);
        copy[HDR_OFFSET].copy_from_slice(&which.place(self.hdr_size).to_be_bytes());
        copy[BINARY_SIZE..][..json.len()].copy_from_slice(json);
        put_checksum(&mut copy);
        Ok(copy)
    }

    /// At least one NUL must follow the text.
    pub(super) fn check_fits(&self, text: usize) -> Result<()> {
        let room = usize::try_from(self.hdr_size).expect("at most 128 KiB") - BINARY_SIZE - 1;
        if text <= room {
            return Ok(());
        }
        Err(unsupported("json", format!("{text} bytes"), format!("at most {room}: the header is full")))
    }
}

/// What a binary header says of the size of its copy, if it may be.
pub(super) fn size_of(bytes: &[u8]) -> Option<usize> {
    let size = u64::from_be_bytes(bytes.get(HDR_SIZE)?.try_into().ok()?);
    SIZES.contains(&size).then(|| usize::try_from(size).expect("at most 128 KiB"))
}

pub(super) fn put_checksum(copy: &mut [u8]) {
    let sum = checksum(copy);
    copy[CHECKSUM][..32].copy_from_slice(&sum);
}

/// SHA-256 over the copy with its checksum field zeroed: finds torn writes, not attackers.
fn checksum(copy: &[u8]) -> [u8; 32] {
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
