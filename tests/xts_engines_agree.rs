//! Question: do all engines compute what crate `xts-mode` computes, on any key, sector, length and thread?

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use aes::Aes256;
use aes::cipher::KeyInit;
use proptest::prelude::*;
use wrapdisk::secret::Secret;
use wrapdisk::units::{MAX_BYTES, Sector, SectorSize};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};
use xts_mode::Xts128;

/// What nobody here wrote: a sector at a time, the tweak spelled out as dm-crypt's plain64.
struct Reference {
    xts: Xts128<Aes256>,
    sector: usize,
}

impl Reference {
    fn new(key: &[u8; 64], size: SectorSize) -> Self {
        let half = |half: &[u8]| Aes256::new_from_slice(half).unwrap();
        Self { xts: Xts128::new(half(&key[..32]), half(&key[32..])), sector: size.len() }
    }

    fn encrypted(&self, first: Sector, plain: &[u8]) -> Vec<u8> {
        let mut run = plain.to_vec();
        for (i, sector) in run.chunks_mut(self.sector).enumerate() {
            let byte = (u128::from(first.get()) + i as u128) * self.sector as u128;
            self.xts.encrypt_sector(sector, (byte / 512).to_le_bytes().into());
        }
        run
    }
}

fn cipher(key: &[u8; 64], size: SectorSize, engine: Engine) -> XtsCipher {
    let key = VolumeKey::new(Secret::take(&mut key.clone()).unwrap().unwrap()).unwrap();
    XtsCipher::new(&key, size, engine).unwrap()
}

fn key() -> impl Strategy<Value = [u8; 64]> {
    any::<[[u8; 32]; 2]>()
        .prop_filter("two halves", |[a, b]| a != b)
        .prop_map(|halves| halves.as_flattened().try_into().unwrap())
}

#[derive(Debug)]
struct Run {
    size: SectorSize,
    first: Sector,
    plain: Vec<u8>,
}

/// 1..=40 sectors anywhere on a disk of up to 2^63 - 1 bytes: near the start, near the end, in between.
fn run() -> impl Strategy<Value = Run> {
    let size = prop_oneof![Just(SectorSize::B512), Just(SectorSize::B4096)];
    (size, 1usize..=40, any::<u64>()).prop_flat_map(|(size, sectors, seed)| {
        let last = MAX_BYTES / size.bytes() - sectors as u64;
        let first = prop_oneof![0..100u64, last - 100..=last, 0..=last];
        first.prop_map(move |first| {
            let first = Sector::new(first).unwrap();
            Run { size, first, plain: noise(seed, sectors * size.len()) }
        })
    })
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_engine_agrees_with_xts_mode(key in key(), run in run()) {
        let want = Reference::new(&key, run.size).encrypted(run.first, &run.plain);
        for engine in Engine::available() {
            let cipher = cipher(&key, run.size, engine);
            let mut out = vec![0xee; run.plain.len()];
            cipher.encrypt_to(run.first, &run.plain, &mut out);
            prop_assert!(out == want, "{} encrypts to elsewhere", engine);
            cipher.decrypt(run.first, &mut out);
            prop_assert!(out == run.plain, "{} decrypts in place", engine);
            cipher.encrypt(run.first, &mut out);
            prop_assert!(out == want, "{} encrypts in place", engine);
            out.fill(0xee);
            cipher.decrypt_to(run.first, &want, &mut out);
            prop_assert!(out == run.plain, "{} decrypts to elsewhere", engine);
        }
    }

    #[test]
    fn a_run_is_the_sum_of_its_sectors(key in key(), run in run(), cut in any::<prop::sample::Index>()) {
        let sectors = run.plain.len() / run.size.len();
        let cut = cut.index(sectors);
        for engine in Engine::available() {
            let cipher = cipher(&key, run.size, engine);
            let (mut whole, mut parts) = (run.plain.clone(), run.plain.clone());
            cipher.encrypt(run.first, &mut whole);
            let (head, tail) = parts.split_at_mut(cut * run.size.len());
            cipher.encrypt(run.first, head);
            cipher.encrypt(Sector::new(run.first.get() + cut as u64).unwrap(), tail);
            prop_assert!(whole == parts, "{} cut at {}", engine, cut);
        }
    }

    #[test]
    fn a_flipped_bit_of_key_or_sector_shows(key in key(), run in run(), bit in 0usize..512) {
        let mut other = key;
        other[bit / 8] ^= 1 << (bit % 8);
        prop_assume!(other[..32] != other[32..]);
        let neighbour = Sector::new(run.first.get().checked_sub(1).unwrap_or(1)).unwrap();
        for engine in Engine::available() {
            let want = Reference::new(&key, run.size).encrypted(run.first, &run.plain);
            let mut out = run.plain.clone();
            cipher(&other, run.size, engine).encrypt(run.first, &mut out);
            prop_assert!(out != want, "{}: another key", engine);
            let mut out = run.plain.clone();
            cipher(&key, run.size, engine).encrypt(neighbour, &mut out);
            prop_assert!(out != want, "{}: another sector", engine);
        }
    }
}

#[test]
fn runs_longer_than_any_batch_agree() {
    // Past 64 sectors and 256 blocks, with a remainder of both.
    let key = noise(7, 64).try_into().unwrap();
    for (size, sectors) in [(SectorSize::B512, 2 * 64 + 3), (SectorSize::B4096, 64 + 5)] {
        let plain = noise(8, sectors * size.len());
        let first = Sector::from(u32::MAX);
        let want = Reference::new(&key, size).encrypted(first, &plain);
        for engine in Engine::available() {
            let mut out = plain.clone();
            cipher(&key, size, engine).encrypt(first, &mut out);
            assert!(out == want, "{engine}, {sectors} sectors of {} bytes", size.bytes());
        }
    }
}

#[test]
fn threads_that_share_a_cipher_do_not_disturb_each_other() {
    let key: [u8; 64] = noise(9, 64).try_into().unwrap();
    // More threads than a pool has contexts on the machines that run this, so that some wait for one.
    let threads = 4 * std::thread::available_parallelism().unwrap().get().min(16) + 1;
    for engine in Engine::available() {
        let cipher = cipher(&key, SectorSize::B4096, engine);
        let reference = Reference::new(&key, SectorSize::B4096);
        std::thread::scope(|scope| {
            for t in 0..threads {
                let first = Sector::new(1000 * t as u64).unwrap();
                let plain = noise(t as u64, (1 + t % 9) * 4096);
                let want = reference.encrypted(first, &plain);
                let cipher = &cipher;
                scope.spawn(move || {
                    let mut out = plain.clone();
                    for round in 0..300 {
                        cipher.encrypt(first, &mut out);
                        assert!(out == want, "{engine}, thread {t}, round {round}: encrypt");
                        cipher.decrypt(first, &mut out);
                        assert!(out == plain, "{engine}, thread {t}, round {round}: decrypt");
                        cipher.encrypt_to(first, &plain, &mut out);
                        assert!(out == want, "{engine}, thread {t}, round {round}: encrypt_to");
                        cipher.decrypt_to(first, &want, &mut out);
                    }
                });
            }
        });
    }
}

#[test]
fn an_empty_run_is_no_work() {
    for engine in Engine::available() {
        let cipher = cipher(&noise(1, 64).try_into().unwrap(), SectorSize::B512, engine);
        cipher.encrypt(Sector::ZERO, &mut []);
        cipher.decrypt_to(Sector::ZERO, &[], &mut []);
    }
}

#[test]
fn a_torn_sector_or_two_lengths_never_pass() {
    for engine in Engine::available() {
        let cipher = cipher(&noise(1, 64).try_into().unwrap(), SectorSize::B4096, engine);
        let torn = std::panic::catch_unwind(|| cipher.encrypt(Sector::ZERO, &mut [0; 512]));
        let unequal =
            std::panic::catch_unwind(|| cipher.encrypt_to(Sector::ZERO, &[0; 8192], &mut [0; 4096]));
        assert!(torn.is_err() && unequal.is_err(), "{engine}");
    }
}
