//! A key from a passphrase: argon2id (RFC 9106), with a cost that is stored beside what it protects.
//!
//! Must never see: the database, files.
//! Invariant: a cost from outside is bounded before any work is done.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Secret, scrubbed};

/// Length of a salt.
pub(super) const SALT: usize = 16;

/// What argon2id is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// KiB.
    pub memory: u32,
    /// Over that memory.
    pub passes: u32,
    /// That can be filled side by side.
    pub lanes: u32,
}

/// RFC 9106 section 4, second recommendation: half a second or less, and it fits into a small machine.
impl Default for Cost {
    fn default() -> Self {
        Self { memory: 64 * 1024, passes: 3, lanes: 4 }
    }
}

impl Cost {
    const MOST: Self = Self { memory: 1024 * 1024, passes: 16, lanes: 16 };

    pub(super) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        for (to, from) in bytes.chunks_exact_mut(4).zip([self.memory, self.passes, self.lanes]) {
            to.copy_from_slice(&from.to_be_bytes());
        }
        bytes
    }

    /// `None` for one that is out of bounds.
    pub(super) fn from_bytes(bytes: [u8; 12]) -> Option<Self> {
        let number = |at: usize| bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four));
        let cost = Self { memory: number(0), passes: number(4), lanes: number(8) };
        let good = (1..=Self::MOST.passes).contains(&cost.passes)
            && (1..=Self::MOST.lanes).contains(&cost.lanes)
            && (8 * cost.lanes..=Self::MOST.memory).contains(&cost.memory);
        good.then_some(cost)
    }
}

/// The key; in memory of its own, which is wiped: argon2's last blocks are the key but for a hash.
///
/// # Errors
/// No memory.
pub(super) fn derive(passphrase: &[u8], salt: &[u8; SALT], cost: Cost) -> Result<Secret<32>> {
    let refused = |e: argon2::Error| Error::new(ErrorKind::Other, format!("argon2: {e}"));
    let params = Params::new(cost.memory, cost.passes, cost.lanes, Some(32)).map_err(refused)?;
    let mut blocks: Vec<Block> = Vec::new();
    blocks.try_reserve_exact(params.block_count()).map_err(|e| {
        Error::new(ErrorKind::Other, format!("{} KiB for argon2: no memory", cost.memory)).caused_by(e)
    })?;
    blocks.resize(params.block_count(), Block::new());
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let key = Secret::try_from_fn(|out| {
        scrubbed(|| argon.hash_password_into_with_memory(passphrase, salt, out, &mut blocks)).map_err(refused)
    });
    for block in &mut blocks {
        block.as_mut().zeroize();
    }
    key
}
