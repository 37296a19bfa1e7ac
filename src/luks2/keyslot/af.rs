//! The anti-forensic splitter of LUKS1, with SHA-256: 4000 stripes, of which every one is needed to get the key back.

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::secret::{self, Secret, SecretBytes, scrubbed};

const KEY: usize = 64;
/// Stripes that cryptsetup uses.
pub(super) const STRIPES: usize = 4000;
/// Bytes of a split key.
pub(super) const SPLIT_SIZE: usize = KEY * STRIPES;

/// Replaces each 32-byte chunk j by SHA-256(j as big-endian u32, chunk).
fn diffuse(block: &mut [u8; KEY]) {
    for (j, chunk) in (0u32..).zip(block.chunks_exact_mut(32)) {
        let hash = Sha256::new().chain_update(j.to_be_bytes()).chain_update(&*chunk).finalize();
        chunk.copy_from_slice(&hash);
    }
}

fn xor(into: &mut [u8; KEY], other: &[u8]) {
    for (a, b) in into.iter_mut().zip(other) {
        *a ^= b;
    }
}

/// What the last stripe is the key's difference to: every bit of every other stripe decides it.
fn chain(sum: &mut [u8; KEY], stripes: &[u8]) {
    for stripe in stripes.chunks_exact(KEY) {
        xor(sum, stripe);
        diffuse(sum);
    }
}

/// Splits a key into fresh stripes.
pub(super) fn split(key: &Secret<KEY>) -> Result<SecretBytes> {
    let mut out = SecretBytes::zeroed(SPLIT_SIZE)?;
    let mut sum = Secret::<KEY>::try_from_fn(|_| Ok(()))?;
    let (stripes, last) = out.expose_mut().split_at_mut(SPLIT_SIZE - KEY);
    secret::random(stripes)?;
    scrubbed(|| chain(sum.expose_mut(), stripes));
    xor(sum.expose_mut(), key.expose());
    last.copy_from_slice(sum.expose());
    Ok(out)
}

/// The reverse. Any 256000 bytes give a key: the digest tells whether it is the right one.
pub(super) fn merge(split: &[u8]) -> Result<Secret<KEY>> {
    Secret::try_from_fn(|sum| {
        let (stripes, last) = split.split_at(SPLIT_SIZE - KEY);
        scrubbed(|| chain(sum, stripes));
        xor(sum, last);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_key_merges_back_and_every_stripe_counts() {
        let key = Secret::<KEY>::random().unwrap();
        let mut split = split(&key).unwrap();
        assert!(merge(split.expose()).unwrap().ct_eq(&key));
        for at in [0, KEY * 1999 + 3, SPLIT_SIZE - 1] {
            split.expose_mut()[at] ^= 1;
            assert!(!merge(split.expose()).unwrap().ct_eq(&key), "byte {at}");
            split.expose_mut()[at] ^= 1;
        }
    }
}
