//! RSA of the embedded vault: the only module that knows the crate `rsa`; what is frequent, decryption, is done by a
//! faster engine where it was built in ([`decrypt`]).
//!
//! RSAES-OAEP (RFC 8017 7.1) with MGF1 of the same hash and an empty label; RSASSA-PSS (8.1) with a salt as long as the
//! hash, RSASSA-PKCS1-v1_5 (8.2) of a digest. RSAES-PKCS1-v1_5 is not here: padding oracles live there.
//! The crate computes on constant-time big integers with base, exponent and modulus blinding and checks the CRT result,
//! which answers RUSTSEC-2023-0071. On decryption it does not look at OAEP's first octet (7.1.2 3 g refuses one that is
//! not 0); aws-lc does, in constant time with all the rest, so that Manger's attack has nothing to measure in either.
//!
//! Must never see: the database, permissions, files.
//!
//! Invariants:
//! 1. A [`PrivateKey`] is a good key: n = p*q, d*e = 1, both factors prime, 2048, 3072 or 4096 bits exactly.
//! 2. Every failed decryption takes one path and gives one error.
//! 3. DER and data keys live in [`SecretBytes`]. The engines' own big integers live on the ordinary heap: both
//!    wipe them on drop, but they are not locked against swap, and a few of the crate's intermediates are not wiped.

use ::rsa::BoxedUint;
use ::rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use ::rsa::traits::{PrivateKeyParts, PublicKeyParts};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use super::model::{CipherAlg, SignAlg};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::SecretBytes;

/// Size of an RSA modulus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RsaBits {
    /// 2048 bits.
    B2048,
    /// 3072 bits.
    #[default]
    B3072,
    /// 4096 bits.
    B4096,
}

impl RsaBits {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        match self {
            Self::B2048 => 2048,
            Self::B3072 => 3072,
            Self::B4096 => 4096,
        }
    }
}

impl TryFrom<u32> for RsaBits {
    type Error = Error;

    fn try_from(bits: u32) -> Result<Self> {
        match bits {
            2048 => Ok(Self::B2048),
            3072 => Ok(Self::B3072),
            4096 => Ok(Self::B4096),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("RSA key size: found {bits} bits, allowed 2048, 3072 or 4096"),
            )),
        }
    }
}

/// Why an operation with a key gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CryptError {
    /// A ciphertext of wrong length, range, padding or label: nobody learns which.
    Bad,
    /// What was to be encrypted or signed is too long, or not of the digest's length.
    Length,
    /// No random numbers, or no memory: the vault's trouble.
    NoRandom,
}

pub(super) type Answer<T> = std::result::Result<T, CryptError>;

/// An RSA key pair that passed every check.
pub(super) struct PrivateKey(::rsa::PrivateKey);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({} bits)", self.bits().get())
    }
}

/// Big-endian integers of a key, as a file or a JWK has them.
pub(super) struct Parts<'a> {
    pub(super) n: &'a [u8],
    pub(super) e: &'a [u8],
    pub(super) d: &'a [u8],
    pub(super) p: &'a [u8],
    pub(super) q: &'a [u8],
}

impl PrivateKey {
    /// A new key. Takes a fraction of a second (2048) to several seconds (4096).
    ///
    /// # Errors
    /// No random generator; an exponent that [`exponent_is_good`] refuses.
    pub(super) fn generate(bits: RsaBits, exponent: u64) -> Result<Self> {
        let size = usize::try_from(bits.get()).expect("at most 4096");
        ::rsa::PrivateKey::new_with_exp(&mut getrandom::SysRng, size, BoxedUint::from(exponent))
            .map(Self)
            .map_err(|e| Error::new(ErrorKind::Other, "generate an RSA key").caused_by(e))
    }

    /// From outside: everything is checked, the CRT values are computed anew.
    ///
    /// # Errors
    /// `InvalidInput`: which part was found wrong, and what is allowed.
    pub(super) fn from_parts(parts: &Parts<'_>) -> Result<Self> {
        let bits = RsaBits::try_from(bit_len(parts.n))?;
        let e = public_exponent(parts.e)?;
        let uint = |what: &str, bytes: &[u8]| {
            BoxedUint::from_be_slice(trimmed(bytes), bits.get()).map_err(|_| {
                bad(format!("{what}: found {} bits, allowed at most {}", bit_len(bytes), bits.get()))
            })
        };
        let primes = vec![uint("p", parts.p)?, uint("q", parts.q)?];
        let key = ::rsa::PrivateKey::from_components(
            uint("n", parts.n)?,
            BoxedUint::from(e),
            uint("d", parts.d)?,
            primes,
        )
        .map_err(|e| match e {
            ::rsa::Error::InvalidModulus => bad("n is not p * q, or is even"),
            ::rsa::Error::InvalidExponent => bad("d is not the inverse of e"),
            ::rsa::Error::InvalidPrime => bad("p or q is not an odd factor of half the size of n"),
            other => bad("its numbers do not belong together").caused_by(other),
        })?;
        // Baillie-PSW: no composite that passes it is known.
        let prime = |p: &BoxedUint| crypto_primes::is_prime(crypto_primes::Flavor::Any, p);
        if !key.primes().iter().all(|p| prime(p.as_ref())) {
            return Err(bad("p or q is not prime"));
        }
        Ok(Self(key))
    }

    /// From what [`PrivateKey::to_pkcs8`] made; its arithmetic is checked again, primality is not (it was sealed).
    ///
    /// # Errors
    /// `Damaged`.
    pub(super) fn from_pkcs8(der: &SecretBytes) -> Result<Self> {
        let key = ::rsa::PrivateKey::from_pkcs8_der(der.expose()).map_err(|_| damaged())?;
        RsaBits::try_from(key.n().bit_width()).map_err(|e| damaged().caused_by(e))?;
        Ok(Self(key))
    }

    /// DER, to be sealed.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn to_pkcs8(&self) -> Result<SecretBytes> {
        let document = self // wiped when dropped
            .0
            .to_pkcs8_der()
            .map_err(|e| Error::new(ErrorKind::Other, "encode a private key").caused_by(e.to_string()))?;
        let mut der = SecretBytes::zeroed(document.as_bytes().len())?;
        der.expose_mut().copy_from_slice(document.as_bytes());
        Ok(der)
    }

    /// Size of the modulus.
    pub(super) fn bits(&self) -> RsaBits {
        RsaBits::try_from(self.0.n().bit_width()).expect("every constructor checks the size")
    }

    /// Modulus and public exponent, big-endian, without leading zeros.
    pub(super) fn public(&self) -> (Vec<u8>, Vec<u8>) {
        (self.0.n_bytes().into_vec(), self.0.e_bytes().into_vec())
    }

    /// The public key as PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// None in practice: a good key encodes.
    pub(super) fn public_pem(&self) -> Result<String> {
        self.0
            .as_public_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|e| Error::new(ErrorKind::Other, "encode a public key").caused_by(e.to_string()))
    }

    /// Encrypts with the public half.
    ///
    /// # Errors
    /// [`CryptError::Length`] for more than the modulus takes; [`CryptError::NoRandom`].
    pub(super) fn encrypt(&self, alg: CipherAlg, plain: &[u8]) -> Answer<Vec<u8>> {
        let key = self.0.as_public_key();
        match alg {
            CipherAlg::RsaOaep => key.oaep_encrypt::<Sha1>(plain),
            CipherAlg::RsaOaep256 => key.oaep_encrypt::<Sha256>(plain),
        }
        .map_err(|e| match e {
            ::rsa::Error::MessageTooLong => CryptError::Length,
            _ => CryptError::NoRandom,
        })
    }

    /// Decrypts with the private half.
    ///
    /// # Errors
    /// [`CryptError::Bad`], [`CryptError::NoRandom`].
    #[cfg(any(test, not(feature = "aws-lc")))]
    fn decrypt(&self, alg: CipherAlg, cipher: &[u8]) -> Answer<SecretBytes> {
        let mut plain = match alg {
            CipherAlg::RsaOaep => self.0.oaep_decrypt::<Sha1>(cipher),
            CipherAlg::RsaOaep256 => self.0.oaep_decrypt::<Sha256>(cipher),
        }
        .map_err(|e| match e {
            ::rsa::Error::Rng => CryptError::NoRandom,
            _ => CryptError::Bad,
        })?;
        SecretBytes::take(&mut plain).map_err(|_| CryptError::NoRandom)
    }

    /// Signs a digest of the length that `alg` has.
    ///
    /// # Errors
    /// [`CryptError::Length`], [`CryptError::NoRandom`].
    pub(super) fn sign(&self, alg: SignAlg, digest: &[u8]) -> Answer<Vec<u8>> {
        if digest.len() != alg.digest_len() {
            return Err(CryptError::Length);
        }
        let (key, rng) = (&self.0, &mut getrandom::SysRng);
        match alg {
            SignAlg::Ps256 => key.pss_sign_prehash_with_rng::<Sha256, _>(rng, digest),
            SignAlg::Ps384 => key.pss_sign_prehash_with_rng::<Sha384, _>(rng, digest),
            SignAlg::Ps512 => key.pss_sign_prehash_with_rng::<Sha512, _>(rng, digest),
            SignAlg::Rs256 => key.pkcs1v15_sign_prehash_with_rng::<Sha256, _>(rng, digest),
            SignAlg::Rs384 => key.pkcs1v15_sign_prehash_with_rng::<Sha384, _>(rng, digest),
            SignAlg::Rs512 => key.pkcs1v15_sign_prehash_with_rng::<Sha512, _>(rng, digest),
        }
        .map_err(|_| CryptError::NoRandom)
    }

    /// Whether `signature` is this key's over the digest.
    ///
    /// # Errors
    /// [`CryptError::Length`] of the digest.
    pub(super) fn verify(&self, alg: SignAlg, digest: &[u8], signature: &[u8]) -> Answer<bool> {
        if digest.len() != alg.digest_len() {
            return Err(CryptError::Length);
        }
        let key = self.0.as_public_key();
        let done = match alg {
            SignAlg::Ps256 => key.pss_verify_prehash::<Sha256>(digest, signature),
            SignAlg::Ps384 => key.pss_verify_prehash::<Sha384>(digest, signature),
            SignAlg::Ps512 => key.pss_verify_prehash::<Sha512>(digest, signature),
            SignAlg::Rs256 => key.pkcs1v15_verify_prehash::<Sha256>(digest, signature),
            SignAlg::Rs384 => key.pkcs1v15_verify_prehash::<Sha384>(digest, signature),
            SignAlg::Rs512 => key.pkcs1v15_verify_prehash::<Sha512>(digest, signature),
        };
        Ok(done.is_ok())
    }
}

/// Decrypts with a key as [`PrivateKey::to_pkcs8`] made it.
///
/// # Errors
/// `Damaged`, for the key; within: [`CryptError::Bad`], [`CryptError::NoRandom`].
#[cfg(not(feature = "aws-lc"))]
pub(super) fn decrypt(der: &SecretBytes, alg: CipherAlg, cipher: &[u8]) -> Result<Answer<SecretBytes>> {
    Ok(PrivateKey::from_pkcs8(der)?.decrypt(alg, cipher))
}

/// Decrypts with a key as [`PrivateKey::to_pkcs8`] made it. aws-lc checks that n = p*q and d*e = 1, blinds, and verifies the
/// CRT result; everything it allocates is wiped when freed.
///
/// # Errors
/// `Damaged`, for the key; within: [`CryptError::Bad`], [`CryptError::NoRandom`].
#[cfg(feature = "aws-lc")]
pub(super) fn decrypt(der: &SecretBytes, alg: CipherAlg, cipher: &[u8]) -> Result<Answer<SecretBytes>> {
    use aws_lc_rs::rsa::{
        OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
    };
    let key = PrivateDecryptingKey::from_pkcs8(der.expose()).map_err(|_| damaged())?;
    let key = OaepPrivateDecryptingKey::new(key).map_err(|_| damaged())?;
    let alg = match alg {
        CipherAlg::RsaOaep => &OAEP_SHA1_MGF1SHA1,
        CipherAlg::RsaOaep256 => &OAEP_SHA256_MGF1SHA256,
    };
    let Ok(mut room) = SecretBytes::zeroed(key.min_output_size()) else {
        return Ok(Err(CryptError::NoRandom));
    };
    // One answer for all: wrong length, range, padding, label.
    let Ok(plain) = key.decrypt(alg, cipher, room.expose_mut(), None) else {
        return Ok(Err(CryptError::Bad));
    };
    Ok(SecretBytes::take(plain).map_err(|_| CryptError::NoRandom))
}

fn damaged() -> Error {
    Error::new(ErrorKind::Damaged, "the sealed private key is not a PKCS#8 RSA key")
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("RSA private key: {what}"))
        .hint("check it: openssl rsa -in FILE -check -noout")
}

/// Without leading zeros: DER and JWK differ in them.
fn trimmed(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|b| **b == 0).count()..]
}

fn bit_len(bytes: &[u8]) -> u32 {
    let bytes = trimmed(bytes);
    let whole = u32::try_from(bytes.len()).unwrap_or(u32::MAX / 8).saturating_mul(8);
    whole - bytes.first().map_or(0, |b| b.leading_zeros())
}

/// Odd, at least 65537 (KEY-VAULT section 2), below 2^33 (the crate's guard against costly exponents).
pub(super) const fn exponent_is_good(e: u64) -> bool {
    e >= 65537 && e < 1 << 33 && e % 2 == 1
}

/// What [`exponent_is_good`] takes.
pub(super) const GOOD_EXPONENTS: &str = "allowed an odd number from 65537 to 2^33";

fn public_exponent(bytes: &[u8]) -> Result<u64> {
    let refuse = |found: String| Err(bad(format!("e: found {found}, {GOOD_EXPONENTS}")));
    let bytes = trimmed(bytes);
    if bytes.len() > 8 {
        return refuse(format!("{} bits", bit_len(bytes)));
    }
    let e = bytes.iter().fold(0, |e, b| e << 8 | u64::from(*b));
    if !exponent_is_good(e) {
        return refuse(e.to_string());
    }
    Ok(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a build with aws-lc: two engines that share no code.
    #[test]
    fn what_is_encrypted_opens_in_every_engine_and_what_is_not_in_none() {
        let key = PrivateKey::generate(RsaBits::B2048, 65537).unwrap();
        let der = key.to_pkcs8().unwrap();
        for alg in [CipherAlg::RsaOaep, CipherAlg::RsaOaep256] {
            for plain in [&b""[..], b"x", &[7; 64]] {
                let sealed = key.encrypt(alg, plain).unwrap();
                assert_eq!(key.decrypt(alg, &sealed).unwrap().expose(), plain);
                assert_eq!(decrypt(&der, alg, &sealed).unwrap().unwrap().expose(), plain);

                let mut bent = sealed.clone();
                bent[100] ^= 1;
                let longer = [&sealed[..], &[0]].concat();
                for bad in [&bent[..], &sealed[1..], &longer, &[], &[0xff; 256]] {
                    assert_eq!(key.decrypt(alg, bad).unwrap_err(), CryptError::Bad);
                    assert_eq!(decrypt(&der, alg, bad).unwrap().unwrap_err(), CryptError::Bad);
                }
            }
        }
    }

    #[test]
    fn a_key_that_is_none_is_damage() {
        let mut der = PrivateKey::generate(RsaBits::B2048, 65537).unwrap().to_pkcs8().unwrap();
        der.expose_mut()[60] ^= 1; // in the modulus
        assert_eq!(decrypt(&der, CipherAlg::RsaOaep256, &[0; 256]).unwrap_err().kind(), ErrorKind::Damaged);
        let no_der = SecretBytes::zeroed(100).unwrap();
        assert_eq!(
            decrypt(&no_der, CipherAlg::RsaOaep256, &[0; 256]).unwrap_err().kind(),
            ErrorKind::Damaged
        );
    }
}
