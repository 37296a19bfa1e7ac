//! The portable engine: XTS over crate `aes`, in batches across sectors, so that the wide AES instructions
//! (VAES takes 64 blocks at once) are reached whatever the sector size.
//!
//! Invariants:
//! - The schedules are built into guarded memory and wiped when dropped (feature `zeroize` of `aes`).
//! - The stack that `aes` used for copies of round keys is overwritten before a call returns.
//!
//! Must never see: sector sizes it does not get from the tweaks. No `unsafe`.

use std::fmt;
use std::ptr::NonNull;

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Block};

use super::{Direction, Tweaks, VolumeKey, halves};
use crate::secret::{guard_foreign, scrub_stack};

const BLOCK: usize = 16;

/// Blocks per call of `aes`: a multiple of the 64 of VAES-512. Masks and data of a batch (2 x 2 KiB) stay in L1.
const BATCH: usize = 128;

/// Tweaks per call of `aes`, for the same reason.
const AHEAD: usize = 64;

pub(super) struct Portable(Box<Schedules>);

struct Schedules {
    data: Aes256,
    tweak: Aes256,
}

impl Portable {
    pub(super) fn new(key: &VolumeKey) -> Self {
        let mut place = Box::<Schedules>::new_uninit();
        guard_foreign(NonNull::from(&mut *place).cast(), size_of::<Schedules>());
        let portable = Self(expand(place, key));
        // With VAES, `aes` spills round keys on every call, and an AES-256 schedule begins with the key itself.
        scrub_stack();
        portable
    }

    pub(super) fn crypt(&self, direction: Direction, tweaks: Tweaks, from: Option<&[u8]>, run: &mut [u8]) {
        self.crypt_blocks(direction, tweaks, from, run);
        scrub_stack();
    }

    // Never inlined: `scrub_stack` must find this frame gone and overwrite it.
    #[inline(never)]
    fn crypt_blocks(&self, direction: Direction, tweaks: Tweaks, from: Option<&[u8]>, run: &mut [u8]) {
        let mut masks = Masks::new(&self.0.tweak, tweaks, run.len());
        let mut mask = [0; BATCH];
        let (blocks, _) = Block::slice_as_chunks_mut(run);
        let mut from = from.map(|from| Block::slice_as_chunks(from).0.chunks(BATCH));
        for batch in blocks.chunks_mut(BATCH) {
            let mask = &mut mask[..batch.len()];
            masks.fill(mask);
            match from.as_mut().and_then(Iterator::next) {
                None => xor(batch, mask),
                Some(from) => xor_from(batch, from, mask),
            }
            match direction {
                Direction::Encrypt => self.0.data.encrypt_blocks(batch),
                Direction::Decrypt => self.0.data.decrypt_blocks(batch),
            }
            xor(batch, mask);
        }
    }
}

impl fmt::Debug for Portable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Portable")
    }
}

#[inline(never)]
fn expand(place: Box<std::mem::MaybeUninit<Schedules>>, key: &VolumeKey) -> Box<Schedules> {
    let (data, tweak) = halves(key.secret());
    Box::write(place, Schedules { data: Aes256::new(data.into()), tweak: Aes256::new(tweak.into()) })
}

fn xor(batch: &mut [Block], mask: &[u128]) {
    for (block, mask) in batch.iter_mut().zip(mask) {
        block.0 = (u128::from_le_bytes(block.0) ^ mask).to_le_bytes();
    }
}

fn xor_from(batch: &mut [Block], from: &[Block], mask: &[u128]) {
    for ((block, from), mask) in batch.iter_mut().zip(from).zip(mask) {
        block.0 = (u128::from_le_bytes(from.0) ^ mask).to_le_bytes();
    }
}

/// The masks of a run, one per block: in each sector E_key2(tweak) times x^0, x^1, x^2... in GF(2^128)
/// (IEEE 1619-2018, 5.2 and 5.3).
struct Masks<'a> {
    key2: &'a Aes256,
    tweaks: Tweaks,
    // Tweaks that are encrypted already, and how many of them are used up.
    firsts: [Block; AHEAD],
    ready: usize,
    used: usize,
    // Sectors whose tweak is still to be encrypted.
    sectors: usize,
    // The next mask, and how many blocks of its sector are left.
    mask: u128,
    left: usize,
}

impl<'a> Masks<'a> {
    fn new(key2: &'a Aes256, tweaks: Tweaks, run: usize) -> Self {
        let sectors = run / tweaks.sector();
        Self { key2, tweaks, firsts: [Block::default(); AHEAD], ready: 0, used: 0, sectors, mask: 0, left: 0 }
    }

    fn fill(&mut self, mut masks: &mut [u128]) {
        while !masks.is_empty() {
            if self.left == 0 {
                self.mask = self.first_of_next_sector();
                self.left = self.tweaks.sector() / BLOCK;
            }
            let n = masks.len().min(self.left);
            let (now, later) = masks.split_at_mut(n);
            self.mask = powers(self.mask, now);
            self.left -= n;
            masks = later;
        }
    }

    fn first_of_next_sector(&mut self) -> u128 {
        if self.used == self.ready {
            self.ready = self.sectors.min(AHEAD);
            self.sectors -= self.ready;
            self.used = 0;
            let firsts = &mut self.firsts[..self.ready];
            firsts.fill_with(|| Block::from(self.tweaks.take()));
            self.key2.encrypt_blocks(firsts);
        }
        let first = u128::from_le_bytes(self.firsts[self.used].0);
        self.used += 1;
        first
    }
}

/// Writes `mask` times x^0, x^1... and returns the one after the last. (Eight interleaved chains of x^8 were
/// measured: a third slower than this one.)
fn powers(mut mask: u128, masks: &mut [u128]) -> u128 {
    for m in masks {
        *m = mask;
        mask = times_x(mask);
    }
    mask
}

/// Times x modulo x^128 + x^7 + x^2 + x + 1. Without a branch: the mask is secret.
const fn times_x(mask: u128) -> u128 {
    (mask << 1) ^ ((mask >> 127) * 0x87)
}
