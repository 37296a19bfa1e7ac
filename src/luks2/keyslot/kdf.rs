//! Stretching a passphrase: Argon2id (RFC 9106) or PBKDF2 (RFC 8018), with costs from an untrusted header.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use serde_json::{Value, json};
use zeroize::Zeroize;

use super::super::fields::Fields;
use super::super::hash::Hash;
use super::super::refuse::{quoted, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Secret, scrubbed};

/// A way to stretch a passphrase, with its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// Argon2id, version 0x13.
    Argon2id {
        /// Passes.
        time: u32,
        /// KiB.
        memory: u32,
        /// Lanes.
        cpus: u32,
    },
    /// PBKDF2-HMAC-SHA256.
    Pbkdf2Sha256 {
        /// Rounds.
        iterations: u32,
    },
    /// PBKDF2-HMAC-SHA512.
    Pbkdf2Sha512 {
        /// Rounds.
        iterations: u32,
    },
}

/// The most that a header may make us spend.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Argon2 memory in KiB; at most 4 GiB is heeded.
    pub max_memory_kib: u32,
}

const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_MEMORY_KIB_EVER: u32 = 4 << 20;
const MAX_TIME: u32 = 64;
const MAX_CPUS: u32 = 16;
const MAX_TIME_TIMES_MEMORY_KIB: u64 = 32 << 20;
const ITERATIONS: std::ops::RangeInclusive<u32> = 1000..=50_000_000;
/// What is used when half of the memory is less.
const MIN_MEMORY_KIB: u32 = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self { max_memory_kib: MAX_MEMORY_KIB }
    }
}

impl Limits {
    /// Refusal 12 of ON-DISK section 8.
    pub(super) fn allow(&self, kdf: &Kdf, id: u32) -> Result<()> {
        let path = |name: &str| format!("keyslots.{id}.kdf.{name}");
        match *kdf {
            Kdf::Argon2id { time, memory, cpus } => {
                if !(1..=MAX_TIME).contains(&time) {
                    return Err(unsupported(path("time"), time, "1 to 64"));
                }
                if !(1..=MAX_CPUS).contains(&cpus) {
                    return Err(unsupported(path("cpus"), cpus, "1 to 16"));
                }
                let (least, most) = (8 * cpus, self.max_memory_kib.min(MAX_MEMORY_KIB_EVER));
                if !(least..=most).contains(&memory) {
                    let allowed = format!("{least} to {most} KiB");
                    let e = unsupported(path("memory"), format!("{memory} KiB"), allowed);
                    let helps = (most..=MAX_MEMORY_KIB_EVER).contains(&memory);
                    return Err(if helps { e.hint("allow more with --max-kdf-memory, up to 4G") } else { e });
                }
                if u64::from(time) * u64::from(memory) > MAX_TIME_TIMES_MEMORY_KIB {
                    return Err(unsupported(
                        path("time"),
                        format!("{time} passes over {memory} KiB"),
                        "at most 32 GiB in all",
                    ));
                }
                Ok(())
            }
            Kdf::Pbkdf2Sha256 { iterations } | Kdf::Pbkdf2Sha512 { iterations } => {
                if ITERATIONS.contains(&iterations) {
                    return Ok(());
                }
                Err(unsupported(path("iterations"), iterations, "1000 to 50000000"))
            }
        }
    }
}

impl Kdf {
    pub(super) fn parse(kdf: &Fields<'_>) -> Result<(Self, Vec<u8>)> {
        let parsed = match kdf.string("type")? {
            "argon2id" => {
                kdf.only(&["type", "time", "memory", "cpus", "salt"])?;
                Self::Argon2id {
                    time: kdf.integer("time")?,
                    memory: kdf.integer("memory")?,
                    cpus: kdf.integer("cpus")?,
                }
            }
            "pbkdf2" => {
                kdf.only(&["type", "hash", "iterations", "salt"])?;
                let iterations = kdf.integer("iterations")?;
                match Hash::parse(kdf)? {
                    Hash::Sha256 => Self::Pbkdf2Sha256 { iterations },
                    Hash::Sha512 => Self::Pbkdf2Sha512 { iterations },
                }
            }
            other => return Err(unsupported(kdf.path("type"), quoted(other), "\"argon2id\" or \"pbkdf2\"")),
        };
        Ok((parsed, kdf.base64("salt", 16..=64)?))
    }

    pub(super) fn to_json(self, salt: &str) -> Value {
        match self {
            Self::Argon2id { time, memory, cpus } => {
                json!({ "type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": salt })
            }
            Self::Pbkdf2Sha256 { iterations } => {
                json!({ "type": "pbkdf2", "hash": "sha256", "iterations": iterations, "salt": salt })
            }
            Self::Pbkdf2Sha512 { iterations } => {
                json!({ "type": "pbkdf2", "hash": "sha512", "iterations": iterations, "salt": salt })
            }
        }
    }

    /// The key of a keyslot's area. The cost has been checked by `Limits` (or is our own).
    ///
    /// # Errors
    /// No memory; a cost that nobody checked.
    pub(super) fn derive(self, passphrase: &[u8], salt: &[u8]) -> Result<Secret<64>> {
        Secret::try_from_fn(|out| {
            scrubbed(|| match self {
                Self::Argon2id { time, memory, cpus } => argon2id(time, memory, cpus, passphrase, salt, out),
                Self::Pbkdf2Sha256 { iterations } => {
                    Hash::Sha256.pbkdf2(passphrase, salt, iterations, out);
                    Ok(())
                }
                Self::Pbkdf2Sha512 { iterations } => {
                    Hash::Sha512.pbkdf2(passphrase, salt, iterations, out);
                    Ok(())
                }
            })
        })
    }
}

/// In memory of its own, which is wiped: its last blocks are the key but for a hash.
fn argon2id(
    time: u32,
    memory: u32,
    cpus: u32,
    passphrase: &[u8],
    salt: &[u8],
    out: &mut [u8; 64],
) -> Result<()> {
    let refused = |e: argon2::Error| Error::new(ErrorKind::InvalidInput, format!("argon2: {e}"));
    let params = Params::new(memory, time, cpus, Some(out.len())).map_err(refused)?;
    let mut blocks: Vec<Block> = Vec::new();
    blocks.try_reserve_exact(params.block_count()).map_err(|e| {
        Error::new(ErrorKind::Other, format!("{memory} KiB for argon2: no memory")).caused_by(e)
    })?;
    blocks.resize(params.block_count(), Block::new());
    let done = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
        passphrase,
        salt,
        out,
        &mut blocks,
    );
    for block in &mut blocks {
        block.as_mut().zeroize();
    }
    done.map_err(refused)
}

impl fmt::Display for Kdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argon2id { time, memory, cpus } => {
                write!(f, "argon2id, {time} passes, {} MiB, {cpus} lanes", memory / 1024)
            }
            Self::Pbkdf2Sha256 { iterations } => write!(f, "pbkdf2-sha256, {iterations} iterations"),
            Self::Pbkdf2Sha512 { iterations } => write!(f, "pbkdf2-sha512, {iterations} iterations"),
        }
    }
}

/// What we write for a passphrase that a person chose: four passes over a GiB, or half of the memory if that is less.
///
/// # Errors
/// The size of the memory cannot be read.
pub fn default_kdf() -> Result<Kdf> {
    let info = nix::sys::sysinfo::sysinfo().map_err(|e| Error::io("ask for the size of memory", e.into()))?;
    let half = u32::try_from(info.ram_total() / 2048).unwrap_or(u32::MAX);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpus = u32::try_from(cpus.min(4)).map_err(|e| Error::new(ErrorKind::Other, "cpus").caused_by(e))?;
    Ok(Kdf::Argon2id { time: 4, memory: half.clamp(MIN_MEMORY_KIB, MAX_MEMORY_KIB), cpus })
}
