//! The engine for x86-64 CPUs with VAES but without AVX-512 (AMD Zen 3, Intel since Alder Lake): AES-XTS in 256-bit
//! registers, two blocks in each. aws-lc widens XTS only with AVX-512, and reaches 0.6 of this on such a CPU.
//!
//! It is IEEE 1619-2018 written down with the CPU's AES instructions, whose time does not depend on data. It has no
//! tables, no branch on a secret, and no state: all threads share the schedules.
//!
//! Invariants:
//! - [`Vaes::new`] is the only way in, and refuses a CPU without the instructions.
//! - Schedules lie in secret memory. Round keys are read from there each time they are used (a volatile load), so that
//!   the compiler has no reason to keep them on the stack, and the small frame that might hold one all the same is
//!   overwritten; tests/xts_forgets_its_keys.rs and tests/secrets_stay_put.rs look for copies.
//!
//! Must never see: sector sizes it does not get from the tweaks. `unsafe` for loads, stores, and the step into code
//! that the CPU must support.

use std::arch::x86_64::*;
use std::fmt;

use super::{Direction, Tweaks, VolumeKey, halves};
use crate::error::Result;
use crate::secret::{SecretBytes, scrub_shallow_stack, scrub_stack};

/// Round keys of AES-256 (FIPS 197: 14 rounds).
const ROUNDS: usize = 15;
const SCHEDULE: usize = ROUNDS * 16;

/// Registers in flight, of two blocks each: what covers the latency of an AES instruction on every CPU of today.
const LANES: usize = 8;
const STEP: usize = LANES * 32;

/// Tweaks encrypted at once, for the same reason. Sectors are at least two steps, so there is always work behind them.
const AHEAD: usize = 8;

/// Three schedules in secret memory: encrypt, decrypt (equivalent inverse cipher, FIPS 197 5.3.5), tweak.
pub(super) struct Vaes(SecretBytes);

/// True when the CPU has the instructions of this engine.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("aes")
}

/// True when aws-lc takes its own wide path.
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

impl Vaes {
    /// # Panics
    /// Without the instructions: a caller's bug that would otherwise end in SIGILL.
    pub(super) fn new(key: &VolumeKey) -> Result<Self> {
        assert!(is_supported(), "xts: this CPU has no VAES");
        let mut schedules = SecretBytes::zeroed(3 * SCHEDULE)?;
        let (data, tweak) = halves(key.secret());
        // SAFETY: the CPU has the instructions, asked above.
        unsafe { expand_all(data, tweak, schedules.expose_mut()) };
        scrub_stack();
        Ok(Self(schedules))
    }

    pub(super) fn crypt(&self, direction: Direction, tweaks: Tweaks, from: Option<&[u8]>, run: &mut [u8]) {
        let (schedules, _) = self.0.expose().as_chunks::<SCHEDULE>();
        let [encrypt, decrypt, tweak] = [0, 1, 2].map(|n| Schedule(&schedules[n]));
        // SAFETY: `new` asked whether the CPU has the instructions.
        unsafe {
            match direction {
                Direction::Encrypt => crypt_run::<true>(encrypt, tweak, tweaks, from, run),
                Direction::Decrypt => crypt_run::<false>(decrypt, tweak, tweaks, from, run),
            }
        }
        // A development build hands the first round key, which is a quarter of the key, to a closure through the stack.
        scrub_shallow_stack();
    }
}

impl fmt::Debug for Vaes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vaes")
    }
}

#[derive(Clone, Copy)]
struct Schedule<'a>(&'a [u8; SCHEDULE]);

impl Schedule<'_> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn round(self, n: usize) -> __m128i {
        let keys: &[u8; 16] = &self.0.as_chunks().0[n];
        // SAFETY: 16 bytes that live as long as `self`; a secret's memory starts on a page and a round key on a multiple
        // of 16, so the read is aligned. Volatile: not to be hoisted out of the loop and spilled.
        unsafe { std::ptr::read_volatile(std::ptr::from_ref(keys).cast::<__m128i>()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn wide(self, n: usize) -> __m256i {
        _mm256_broadcastsi128_si256(self.round(n))
    }
}

#[target_feature(enable = "avx2,aes,vaes,vpclmulqdq")]
fn crypt_run<const ENCRYPT: bool>(
    data: Schedule<'_>,
    tweak: Schedule<'_>,
    mut tweaks: Tweaks,
    mut from: Option<&[u8]>,
    run: &mut [u8],
) {
    let sector = tweaks.sector();
    for group in run.chunks_mut(AHEAD * sector) {
        let firsts = encrypt_tweaks(tweak, &mut tweaks, group.len() / sector);
        for (out, first) in group.chunks_exact_mut(sector).zip(firsts) {
            let plain = from.as_mut().map(|from| from.split_off(..sector).expect("from is as long as run"));
            crypt_sector::<ENCRYPT>(data, first, plain, out);
        }
    }
}

/// E_key2 of the next `count` tweaks.
#[inline]
#[target_feature(enable = "avx2,aes")]
fn encrypt_tweaks(key: Schedule<'_>, tweaks: &mut Tweaks, count: usize) -> [__m128i; AHEAD] {
    let mut blocks = [_mm_setzero_si128(); AHEAD];
    for block in &mut blocks[..count] {
        *block = _mm_xor_si128(load16(&tweaks.take()), key.round(0));
    }
    for n in 1..ROUNDS - 1 {
        let round = key.round(n);
        for block in &mut blocks {
            *block = _mm_aesenc_si128(*block, round);
        }
    }
    let last = key.round(ROUNDS - 1);
    for block in &mut blocks {
        *block = _mm_aesenclast_si128(*block, last);
    }
    blocks
}

/// One sector, `STEP` bytes at a time, from `from` or in place. The masks are `first` times x^0, x^1, x^2... (5.3).
#[inline]
#[target_feature(enable = "avx2,aes,vaes,vpclmulqdq")]
fn crypt_sector<const ENCRYPT: bool>(
    data: Schedule<'_>,
    first: __m128i,
    mut from: Option<&[u8]>,
    sector: &mut [u8],
) {
    let mut masks = first_masks(first);
    for out in sector.as_chunks_mut::<STEP>().0 {
        let mut blocks = match from.as_mut().and_then(next_step) {
            Some(from) => load(from),
            None => load(out),
        };
        let round = data.wide(0);
        for (block, mask) in blocks.iter_mut().zip(&masks) {
            *block = _mm256_xor_si256(*block, _mm256_xor_si256(*mask, round));
        }
        for n in 1..ROUNDS - 1 {
            let round = data.wide(n);
            for block in &mut blocks {
                *block = match ENCRYPT {
                    true => _mm256_aesenc_epi128(*block, round),
                    false => _mm256_aesdec_epi128(*block, round),
                };
            }
        }
        let round = data.wide(ROUNDS - 1);
        for ((block, mask), out) in blocks.iter().zip(&mut masks).zip(out.as_chunks_mut::<32>().0) {
            // The mask goes into the last round key: AESENCLAST ends with that xor anyhow.
            let round = _mm256_xor_si256(round, *mask);
            let done = match ENCRYPT {
                true => _mm256_aesenclast_epi128(*block, round),
                false => _mm256_aesdeclast_epi128(*block, round),
            };
            store32(out, done);
            *mask = times_x16(*mask);
        }
    }
}

/// Takes the first `STEP` bytes off.
fn next_step<'a>(from: &mut &'a [u8]) -> Option<&'a [u8; STEP]> {
    let (step, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(step)
}

#[inline]
#[target_feature(enable = "avx2")]
fn first_masks(first: __m128i) -> [__m256i; LANES] {
    let mut masks = [_mm256_set_m128i(times_x(first), first); LANES];
    for n in 1..LANES {
        masks[n] = times_x2(masks[n - 1]);
    }
    masks
}

/// Times x modulo x^128 + x^7 + x^2 + x + 1: both halves doubled, and what left either at the top comes in where it
/// belongs (bit 64, or 0x87).
#[inline]
#[target_feature(enable = "avx2")]
fn times_x(mask: __m128i) -> __m128i {
    let carries = _mm_shuffle_epi32::<0b00_01_00_11>(_mm_srai_epi32::<31>(mask));
    let carries = _mm_and_si128(carries, _mm_set_epi32(0, 1, 0, 0x87));
    _mm_xor_si128(_mm_add_epi64(mask, mask), carries)
}

/// Times x^2, in both lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn times_x2(mut masks: __m256i) -> __m256i {
    for _ in 0..2 {
        let carries = _mm256_shuffle_epi32::<0b00_01_00_11>(_mm256_srai_epi32::<31>(masks));
        let carries = _mm256_and_si256(carries, _mm256_set_epi32(0, 1, 0, 0x87, 0, 1, 0, 0x87));
        masks = _mm256_xor_si256(_mm256_add_epi64(masks, masks), carries);
    }
    masks
}

/// Times x^16, in both lanes: two bytes up, and the two that left times 0x87 (which stays below x^32).
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_x16(masks: __m256i) -> __m256i {
    const { assert!(2 * LANES == 16) };
    let left = _mm256_srli_si256::<14>(masks);
    let folded = _mm256_clmulepi64_epi128::<0>(left, _mm256_set_epi64x(0, 0x87, 0, 0x87));
    _mm256_xor_si256(_mm256_slli_si256::<2>(masks), folded)
}

// Never inlined: `scrub_stack` must find this frame gone and overwrite it.
#[inline(never)]
#[target_feature(enable = "avx2,aes")]
fn expand_all(data: &[u8; 32], tweak: &[u8; 32], schedules: &mut [u8]) {
    let (schedules, _) = schedules.as_chunks_mut::<SCHEDULE>();
    expand(data, &mut schedules[0]);
    let (encrypt, decrypt) = schedules.split_at_mut(1);
    invert(&encrypt[0], &mut decrypt[0]);
    expand(tweak, &mut schedules[2]);
}

/// FIPS 197 5.2 for 256-bit keys: each round key from the two before it.
#[target_feature(enable = "avx2,aes")]
fn expand(key: &[u8; 32], schedule: &mut [u8; SCHEDULE]) {
    let (halves, _) = key.as_chunks::<16>();
    let (mut even, mut odd) = (load16(&halves[0]), load16(&halves[1]));
    let (keys, _) = schedule.as_chunks_mut::<16>();
    (keys[0], keys[1]) = (halves[0], halves[1]);
    let mut at = 2;
    let mut next = |sum: __m128i| {
        store16(&mut keys[at], sum);
        at += 1;
    };
    macro_rules! two_rounds {
        ($($rcon:literal)*) => {$(
            // RotWord and SubWord and the round constant for every other key, SubWord alone for the rest.
            even = _mm_xor_si128(prefix_xor(even), _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$rcon>(odd)));
            next(even);
            odd = _mm_xor_si128(prefix_xor(odd), _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(even)));
            next(odd);
        )*};
    }
    two_rounds!(0x01 0x02 0x04 0x08 0x10 0x20);
    let last = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<0x40>(odd));
    next(_mm_xor_si128(prefix_xor(even), last));
}

/// w0, w0^w1, w0^w1^w2, w0^w1^w2^w3.
#[inline]
#[target_feature(enable = "avx2")]
fn prefix_xor(words: __m128i) -> __m128i {
    let words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
    _mm_xor_si128(words, _mm_slli_si128::<8>(words))
}

/// The keys in reverse, all but the first and the last through InvMixColumns.
#[target_feature(enable = "avx2,aes")]
fn invert(encrypt: &[u8; SCHEDULE], decrypt: &mut [u8; SCHEDULE]) {
    let (from, to) = (encrypt.as_chunks::<16>().0, decrypt.as_chunks_mut::<16>().0);
    for (n, (from, to)) in from.iter().rev().zip(to).enumerate() {
        match n {
            0 | 14 => *to = *from,
            _ => store16(to, _mm_aesimc_si128(load16(from))),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; STEP]) -> [__m256i; LANES] {
    let mut blocks = [_mm256_setzero_si256(); LANES];
    for (block, part) in blocks.iter_mut().zip(bytes.as_chunks::<32>().0) {
        // SAFETY: 32 readable bytes; the load takes any alignment.
        *block = unsafe { _mm256_loadu_si256(std::ptr::from_ref(part).cast()) };
    }
    blocks
}

#[inline]
#[target_feature(enable = "avx2")]
fn store32(out: &mut [u8; 32], value: __m256i) {
    // SAFETY: 32 writable bytes; the store takes any alignment.
    unsafe { _mm256_storeu_si256(std::ptr::from_mut(out).cast(), value) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 readable bytes; the load takes any alignment.
    unsafe { _mm_loadu_si128(std::ptr::from_ref(bytes).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store16(out: &mut [u8; 16], value: __m128i) {
    // SAFETY: 16 writable bytes; the store takes any alignment.
    unsafe { _mm_storeu_si128(std::ptr::from_mut(out).cast(), value) };
}
