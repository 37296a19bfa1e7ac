//! The anti-forensic splitter of LUKS1: 4000 stripes, of which every one is needed to get the key back.

use super::super::hash::Hash;
use crate::error::Result;
use crate::secret::{self, Secret, SecretBytes, scrubbed};

const KEY: usize = 64;
/// Stripes that cryptsetup uses.
pub(super) const STRIPES: usize = 4000;
/// Bytes of a split key.
pub(super) const SPLIT_SIZE: usize = KEY * STRIPES;

/// Replaces each chunk j, as long as a hash, by the hash of (j as big-endian u32, chunk).
fn diffuse(block: &mut [u8; KEY], hash: Hash) {
    for (j, chunk) in (0u32..).zip(block.chunks_exact_mut(hash.len())) {
        hash.replace(j, chunk);
    }
}

fn xor(into: &mut [u8; KEY], other: &[u8]) {
    for (a, b) in into.iter_mut().zip(other) {
        *a ^= b;
    }
}

/// What the last stripe is the key's difference to: every bit of every other stripe decides it.
fn chain(sum: &mut [u8; KEY], stripes: &[u8], hash: Hash) {
    for stripe in stripes.chunks_exact(KEY) {
        xor(sum, stripe);
        diffuse(sum, hash);
    }
}

/// Splits a key into fresh stripes.
pub(super) fn split(key: &Secret<KEY>, hash: Hash) -> Result<SecretBytes> {
    let mut out = SecretBytes::zeroed(SPLIT_SIZE)?;
    let mut sum = Secret::<KEY>::try_from_fn(|_| Ok(()))?;
    let (stripes, last) = out.expose_mut().split_at_mut(SPLIT_SIZE - KEY);
    secret::random(stripes)?;
    scrubbed(|| chain(sum.expose_mut(), stripes, hash));
    xor(sum.expose_mut(), key.expose());
    last.copy_from_slice(sum.expose());
    Ok(out)
}

/// The reverse. Any 256000 bytes give a key: the digest tells whether it is the right one.
pub(super) fn merge(split: &[u8], hash: Hash) -> Result<Secret<KEY>> {
    Secret::try_from_fn(|sum| {
        let (stripes, last) = split.split_at(SPLIT_SIZE - KEY);
        scrubbed(|| chain(sum, stripes, hash));
        xor(sum, last);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_key_merges_back_and_every_stripe_counts() {
        for hash in [Hash::Sha256, Hash::Sha512] {
            let key = Secret::<KEY>::random().unwrap();
            let mut split = split(&key, hash).unwrap();
            let merges = |split: &SecretBytes| merge(split.expose(), hash).unwrap().ct_eq(&key);
            assert!(merges(&split));
            for at in [0, KEY * 1999 + 3, SPLIT_SIZE - 1] {
                split.expose_mut()[at] ^= 1;
                assert!(!merges(&split), "{hash:?}, byte {at}");
                split.expose_mut()[at] ^= 1;
            }
        }
    }
}
