//! Known answers, run once at start: a miscompiled or misdetected engine must not touch a disk.
//!
//! The bytes below are of IEEE 1619-2007 Annex B and of ON-DISK.md section 15, both reproduced with OpenSSL 3.0.

use sha2::{Digest, Sha256};

use super::{Engine, VolumeKey, XtsCipher};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;
use crate::units::{Sector, SectorSize};

/// What `sectors` sectors of `plain` must become. Written as a digest, to cover every byte in one line.
struct Answer {
    name: &'static str,
    key: [[u8; 32]; 2],
    sector_size: SectorSize,
    first: u32,
    plain: fn(usize) -> u8,
    sectors: usize,
    sha256: [u8; 32],
}

/// IEEE 1619 calls its vectors "vector 1" to "vector 19"; 10 to 14 are AES-256-XTS over whole data units.
const IEEE_KEY: [[u8; 32]; 2] = [
    hex("2718281828459045235360287471352662497757247093699959574966967627"),
    hex("3141592653589793238462643383279502884197169399375105820974944592"),
];

/// SHA-512("wrapdisk test vector 1").
const OUR_KEY: [[u8; 32]; 2] = [
    hex("efe2ad056603837807ca77120c13ea22491b77c716aed1a031740eed98fae35d"),
    hex("9321aa8299ec88e38d914acc41b8d50c47e2ee394b200df3b317c59770239b62"),
];

const ANSWERS: [Answer; 3] = [
    Answer {
        name: "IEEE 1619 vector 10",
        key: IEEE_KEY,
        sector_size: SectorSize::B512,
        first: 0xff,
        plain: low_byte,
        sectors: 1,
        sha256: hex("e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364"),
    },
    Answer {
        name: "IEEE 1619 vector 13",
        key: IEEE_KEY,
        sector_size: SectorSize::B512,
        first: 0xffff_ffff,
        plain: low_byte,
        sectors: 1,
        sha256: hex("c706140a11affda7402234f5e6331eacbfeb687d8e80d83962691823bb3636f0"),
    },
    Answer {
        name: "two zero sectors of 4096 bytes, plain64",
        key: OUR_KEY,
        sector_size: SectorSize::B4096,
        first: 0,
        plain: |_| 0,
        sectors: 2,
        sha256: hex("f3cc3d00edfe34b048652b68b5fc661d9bbaa50b2e62e249349af8fde3cf8bc3"),
    },
];

/// Known answers on the chosen engine, run once at start: encryption, decryption, in place and not.
///
/// # Errors
/// `Other` when the engine computes something else: nothing may be encrypted with it. Or no memory.
pub fn self_test(engine: Engine) -> Result<()> {
    ANSWERS.iter().try_for_each(|answer| check(engine, answer))
}

fn check(engine: Engine, answer: &Answer) -> Result<()> {
    let key = VolumeKey::new(Secret::try_from_fn(|key| {
        key.copy_from_slice(answer.key.as_flattened());
        Ok(())
    })?)?;
    let cipher = XtsCipher::new(&key, answer.sector_size, engine)?;
    let first = Sector::from(answer.first);
    let plain: Vec<u8> = (0..answer.sectors * answer.sector_size.len()).map(answer.plain).collect();

    let mut run = plain.clone();
    cipher.encrypt(first, &mut run);
    let encrypted = Sha256::digest(&run)[..] == answer.sha256;
    cipher.decrypt(first, &mut run);
    let decrypted = run == plain;
    cipher.encrypt_to(first, &plain, &mut run);
    let encrypted_to = Sha256::digest(&run)[..] == answer.sha256;

    let wrong: Vec<_> = [(encrypted, "encrypt"), (decrypted, "decrypt"), (encrypted_to, "encrypt_to")]
        .into_iter()
        .filter_map(|(right, what)| (!right).then_some(what))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Other,
        format!(
            "self-test of AES-256-XTS: found other bytes than {} in {} of engine {engine}",
            answer.name,
            wrong.join(", "),
        ),
    )
    .hint("do not use this build on this machine: its cipher is broken (compiler, CPU or memory fault)"))
}

#[expect(clippy::cast_possible_truncation, reason = "the low byte is what is wanted")]
const fn low_byte(i: usize) -> u8 {
    i as u8
}

/// 32 bytes written in hexadecimal; a typing error does not compile.
const fn hex(text: &str) -> [u8; 32] {
    const fn digit(c: u8) -> u8 {
        match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            _ => panic!("a lower-case hexadecimal digit"),
        }
    }
    let text = text.as_bytes();
    assert!(text.len() == 64);
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        bytes[i] = digit(text[2 * i]) << 4 | digit(text[2 * i + 1]);
        i += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_knows_the_answers() {
        for engine in Engine::available() {
            self_test(engine).unwrap();
        }
    }

    #[test]
    fn a_wrong_answer_is_told_with_its_engine() {
        let [mut wrong, ..] = ANSWERS;
        wrong.sha256[31] ^= 1;
        let e = check(Engine::RustCrypto, &wrong).unwrap_err();
        assert_eq!(
            e.to_string(),
            "self-test of AES-256-XTS: found other bytes than IEEE 1619 vector 10 in encrypt, encrypt_to of engine rustcrypto"
        );
    }
}
