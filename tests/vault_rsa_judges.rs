//! Is our RSA the RSA of everybody else? OpenSSL wraps and unwraps with us in both directions, its key files come in, and
//! keys that are not what they claim to be stay out.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use tempfile::TempDir;
use wrapdisk::envelope::{Kid, WrapAlg, WrappedDek};
use wrapdisk::error::ErrorKind;
use wrapdisk::secret::Secret;
use wrapdisk::vault::local::{ImportedKey, LocalVault, NewKey, RsaBits};
use wrapdisk::vault::{Call, KeyVault, VaultError};

/// Runs openssl in `dir`; it must be there and must succeed.
fn openssl(dir: &Path, args: &str) -> Vec<u8> {
    let out = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output();
    let out = out.expect("the test needs the openssl command");
    assert!(out.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// A folder with `key.pem`: one key of OpenSSL's for all tests.
static THEIRS: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    openssl(dir.path(), "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem");
    dir
});

fn their_pem() -> Vec<u8> {
    std::fs::read(THEIRS.path().join("key.pem")).unwrap()
}

/// n, e, d, p, q of THEIRS, read by the crate itself and not by our importer.
fn their_parts() -> [Vec<u8>; 5] {
    use rsa::pkcs8::DecodePrivateKey;
    let key = rsa::PrivateKey::from_pkcs8_pem(std::str::from_utf8(&their_pem()).unwrap()).unwrap();
    let bytes = |u: &rsa::BoxedUint| u.to_be_bytes_trimmed_vartime().into_vec();
    [
        bytes(key.n()),
        bytes(key.e()),
        bytes(key.d()),
        bytes(key.primes()[0].as_ref()),
        bytes(key.primes()[1].as_ref()),
    ]
}

fn jwk([n, e, d, p, q]: &[Vec<u8>; 5]) -> String {
    let b = |bytes: &Vec<u8>| URL_SAFE_NO_PAD.encode(bytes);
    format!(
        r#"{{"kty":"RSA","n":"{}","e":"{}","d":"{}","p":"{}","q":"{}","kid":"x","key_ops":["wrapKey"]}}"#,
        b(n),
        b(e),
        b(d),
        b(p),
        b(q)
    )
}

/// A vault into which a key was imported.
struct Ours {
    _dir: TempDir,
    vault: LocalVault,
    call: Call,
    kid: Kid,
}

fn import(key: &ImportedKey) -> Ours {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("judge");
    let kid = vault.import_key("theirs", key, &NewKey::default(), &call).unwrap().kid;
    Ours { _dir: dir, vault, call, kid }
}

impl Ours {
    fn unwrap(&self, bytes: Vec<u8>) -> Result<Secret<64>, VaultError> {
        self.vault.unwrap(&WrappedDek { kid: self.kid.clone(), alg: WrapAlg::RsaOaep256, bytes }, &self.call)
    }
}

const OAEP256: &str =
    "-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256";

/// OpenSSL unwraps what we wrap, and we what it wraps, with the private key `key.pem` of `dir`.
fn agree(dir: &Path, ours: &Ours) {
    let dek = Secret::<64>::random().unwrap();
    let wrapped = ours.vault.wrap(&ours.kid, WrapAlg::RsaOaep256, &dek, &ours.call).unwrap();
    std::fs::write(dir.join("wrapped"), &wrapped.bytes).unwrap();
    let plain = openssl(dir, &format!("pkeyutl -decrypt -inkey key.pem -in wrapped {OAEP256}"));
    assert_eq!(plain, dek.expose());
    std::fs::write(dir.join("dek"), dek.expose()).unwrap();
    let theirs = openssl(dir, &format!("pkeyutl -encrypt -inkey key.pem -in dek {OAEP256}"));
    assert_eq!(ours.unwrap(theirs).unwrap().expose(), dek.expose());
}

#[test]
fn openssl_and_we_unwrap_each_other_under_an_imported_key() {
    agree(THEIRS.path(), &import(&ImportedKey::from_pem(&their_pem(), None).unwrap()));
}

#[test]
fn keys_of_3072_and_4096_bits_agree_too() {
    for bits in [3072u32, 4096] {
        let dir = tempfile::tempdir().unwrap();
        openssl(dir.path(), &format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:{bits} -out key.pem"));
        let ours = import(
            &ImportedKey::from_pem(&std::fs::read(dir.path().join("key.pem")).unwrap(), None).unwrap(),
        );
        agree(dir.path(), &ours);
        let info = ours.vault.describe(&(&ours.kid).into(), &ours.call).unwrap();
        assert_eq!(info.bits, bits);
    }
}

#[test]
fn openssl_wraps_under_the_public_key_of_a_key_made_here() {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("judge");
    let key = vault.create_key("ours", &NewKey::wrapping(RsaBits::B2048), &call).unwrap();
    let pem = vault.public_pem(&(&key.kid).into(), &call).unwrap();
    std::fs::write(dir.path().join("pub.pem"), &pem).unwrap();
    let text = openssl(dir.path(), "rsa -pubin -in pub.pem -noout -text");
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("2048 bit") && text.contains("Exponent: 65537 (0x10001)"), "{text}");
    let dek = [0x5au8; 64];
    std::fs::write(dir.path().join("dek"), dek).unwrap();
    let bytes = openssl(dir.path(), &format!("pkeyutl -encrypt -pubin -inkey pub.pem -in dek {OAEP256}"));
    let wrapped = WrappedDek { kid: key.kid, alg: WrapAlg::RsaOaep256, bytes };
    assert_eq!(vault.unwrap(&wrapped, &call).unwrap().expose(), &dek);
}

#[test]
fn another_hash_label_padding_or_length_does_not_unwrap() {
    let ours = import(&ImportedKey::from_pem(&their_pem(), None).unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key.pem"), their_pem()).unwrap();
    std::fs::write(dir.path().join("dek"), [1u8; 64]).unwrap();
    std::fs::write(dir.path().join("short"), [1u8; 63]).unwrap();
    std::fs::write(dir.path().join("long"), [1u8; 65]).unwrap();
    let wrap = |file: &str, options: &str| {
        openssl(dir.path(), &format!("pkeyutl -encrypt -inkey key.pem -in {file} {options}"))
    };
    assert!(ours.unwrap(wrap("dek", OAEP256)).is_ok(), "the oracle works");
    let mut messages = Vec::new();
    for (file, options) in [
        ("dek", "-pkeyopt rsa_padding_mode:oaep"), // SHA-1
        ("dek", "-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha1"),
        ("dek", &format!("{OAEP256} -pkeyopt rsa_oaep_label:00")),
        ("dek", "-pkeyopt rsa_padding_mode:pkcs1"),
        ("short", OAEP256),
        ("long", OAEP256),
    ] {
        match ours.unwrap(wrap(file, options)) {
            Err(VaultError::Corrupt(message)) => messages.push(message),
            other => panic!("{file} {options}: {other:?}"),
        }
    }
    assert!(messages.iter().all(|m| *m == messages[0]), "{messages:#?}");
}

#[test]
fn every_key_file_format_of_openssl_comes_in() {
    let dir = THEIRS.path();
    openssl(dir, "rsa -in key.pem -traditional -out pkcs1.pem");
    openssl(dir, "rsa -in key.pem -traditional -outform DER -out pkcs1.der");
    openssl(dir, "pkey -in key.pem -outform DER -out pkcs8.der");
    openssl(dir, "pkcs8 -topk8 -in key.pem -passout pass:geheim -out enc.pem");
    openssl(dir, "pkcs8 -topk8 -in key.pem -passout pass:geheim -outform DER -out enc.der");
    openssl(dir, "pkcs8 -topk8 -in key.pem -passout pass:geheim -scrypt -out scrypt.pem");
    openssl(dir, "pkey -in key.pem -text -out text.pem"); // text after the PEM block
    openssl(dir, "req -x509 -new -key key.pem -subj /CN=x -out cert.pem");
    let both = [std::fs::read(dir.join("cert.pem")).unwrap(), their_pem()].concat();
    std::fs::write(dir.join("both.pem"), both).unwrap();
    let reference = import(&ImportedKey::from_pem(&their_pem(), None).unwrap());
    let wrapped = reference.vault.wrap(
        &reference.kid,
        WrapAlg::RsaOaep256,
        &Secret::random().unwrap(),
        &reference.call,
    );
    let wrapped = wrapped.unwrap().bytes;
    for file in
        ["pkcs1.pem", "pkcs1.der", "pkcs8.der", "enc.pem", "enc.der", "scrypt.pem", "text.pem", "both.pem"]
    {
        let bytes = std::fs::read(dir.join(file)).unwrap();
        let key = ImportedKey::from_pem(&bytes, Some(b"geheim"))
            .unwrap_or_else(|e| panic!("{file}: {}", e.chain()));
        assert!(import(&key).unwrap(wrapped.clone()).is_ok(), "{file}");
    }
    let key = ImportedKey::from_jwk(jwk(&their_parts()).as_bytes()).unwrap();
    assert!(import(&key).unwrap(wrapped).is_ok(), "JWK");
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    let dir = THEIRS.path();
    openssl(dir, "pkcs8 -topk8 -in key.pem -passout pass:geheim -out enc2.pem");
    let bytes = std::fs::read(dir.join("enc2.pem")).unwrap();
    for passphrase in [None, Some(&b"falsch"[..])] {
        let e = ImportedKey::from_pem(&bytes, passphrase).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::WrongKey, "{e:?}");
        assert!(!e.chain().contains("falsch"));
    }
    openssl(dir, "rsa -in key.pem -traditional -aes256 -passout pass:geheim -out old.pem");
    let e = ImportedKey::from_pem(&std::fs::read(dir.join("old.pem")).unwrap(), Some(b"geheim")).unwrap_err();
    assert!(e.advice().unwrap().contains("openssl pkcs8 -topk8"), "{e:?}");
}

/// The refusal of a JWK with these parts.
fn refusal(parts: &[Vec<u8>; 5]) -> String {
    let e = ImportedKey::from_jwk(jwk(parts).as_bytes()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e:?}");
    e.to_string()
}

#[test]
fn a_key_whose_numbers_do_not_belong_together_is_refused_by_name() {
    let good = their_parts();
    assert!(ImportedKey::from_jwk(jwk(&good).as_bytes()).is_ok(), "the oracle works");
    let with = |at: usize, value: Vec<u8>| {
        let mut parts = good.clone();
        parts[at] = value;
        refusal(&parts)
    };
    let plus2 = |at: usize| {
        let mut value = good[at].clone();
        let last = value.len() - 1;
        value[last] ^= 2; // odd stays odd
        value
    };
    assert!(with(0, plus2(0)).contains("n is not p * q"), "wrong n");
    assert!(with(2, plus2(2)).contains("d is not the inverse of e"), "wrong d");
    assert!(with(3, plus2(3)).contains("n is not p * q"), "wrong p");
    assert!(with(4, vec![]).contains("n is not p * q"), "q = 0");
    assert!(with(4, vec![1]).contains("n is not p * q"), "q = 1");
    assert!(with(4, good[3].clone()).contains("n is not p * q"), "p = q");
    assert!(with(2, vec![0xff; 300]).contains("d: found 2400 bits, allowed at most 2048"), "d too long");
    for (e, found) in [
        (vec![3], "e: found 3,"),
        (vec![1, 0, 0], "e: found 65536,"),
        (vec![1, 0, 2], "e: found 65538,"),
        (vec![0xff; 9], "e: found 72 bits,"),
        (vec![], "e: found 0,"),
        (vec![0x10, 0, 0, 0, 1], "e: found 68719476737,"),
    ] {
        let message = with(1, e);
        assert!(message.contains(found) && message.contains("from 65537"), "{message}");
    }
}

#[test]
fn a_key_whose_factor_is_composite_is_refused() {
    // Consistent in all the sums: n = p * q and d * e = 1 modulo p - 1 and q - 1, but p is a product of two primes.
    let prime = |bits: u32| {
        let hex = openssl(THEIRS.path(), &format!("prime -generate -hex -bits {bits}"));
        let hex = String::from_utf8(hex).unwrap().trim().to_lowercase();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        rsa::BoxedUint::from_be_slice(&bytes, 1024).unwrap()
    };
    let key = std::iter::repeat_with(|| {
        let composite = &prime(512) * &prime(512);
        rsa::PrivateKey::from_p_q(composite, prime(1024), rsa::BoxedUint::from(65537u64)).ok()
    })
    .flatten()
    .find(|key| key.n().bit_width() == 2048)
    .unwrap();
    let bytes = |u: &rsa::BoxedUint| u.to_be_bytes_trimmed_vartime().into_vec();
    let [p, q] = [bytes(key.primes()[0].as_ref()), bytes(key.primes()[1].as_ref())];
    let message = refusal(&[bytes(key.n()), bytes(key.e()), bytes(key.d()), p, q]);
    assert!(message.contains("not prime"), "{message}");
}

#[test]
fn a_key_of_one_prime_squared_is_refused_and_does_not_panic() {
    // n = p * p and d * e = 1 modulo p - 1: right in every sum, but q has no inverse modulo p.
    let script = "import sys; p = int(sys.argv[1], 16); print('%x %x' % (p * p, pow(65537, -1, p - 1)))";
    let hex = |text: &str| -> Vec<u8> {
        let even = if text.len() % 2 == 1 { format!("0{text}") } else { text.to_owned() };
        (0..even.len()).step_by(2).map(|i| u8::from_str_radix(&even[i..i + 2], 16).unwrap()).collect()
    };
    let p = String::from_utf8(openssl(THEIRS.path(), "prime -generate -hex -bits 1024")).unwrap();
    let sums = Command::new("python3").args(["-c", script, p.trim()]).output().unwrap();
    let sums = String::from_utf8(sums.stdout).unwrap();
    let (n, d) = sums.trim().split_once(' ').unwrap();
    let p = hex(p.trim());
    refusal(&[hex(n), vec![1, 0, 1], hex(d), p.clone(), p]);
}

#[test]
fn other_sizes_and_kinds_of_key_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (make, found) in [
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            "found 1024 bits, allowed 2048, 3072 or 4096",
        ),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2056",
            "found 2056 bits, allowed 2048, 3072 or 4096",
        ),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_primes:3",
            "more than two primes",
        ),
        ("genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048", "not rsaEncryption"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", "not rsaEncryption"),
        ("ecparam -name prime256v1 -genkey -noout", "PEM of a \"EC PRIVATE KEY\""),
    ] {
        openssl(dir.path(), &format!("{make} -out bad.pem"));
        let e = ImportedKey::from_pem(&std::fs::read(dir.path().join("bad.pem")).unwrap(), None).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
        assert!(e.to_string().contains(found), "{make}: {e:?}");
    }
    let public = openssl(THEIRS.path(), "pkey -in key.pem -pubout");
    let e = ImportedKey::from_pem(&public, None).unwrap_err();
    assert!(e.to_string().contains("PEM of a \"PUBLIC KEY\""), "{e:?}");
}

#[test]
fn garbage_and_cut_files_are_refused_without_a_panic_and_without_a_secret_in_the_message() {
    let pem = their_pem();
    let der = openssl(THEIRS.path(), "pkey -in key.pem -outform DER");
    let json = jwk(&their_parts());
    let secret = URL_SAFE_NO_PAD.encode(&their_parts()[2]);
    let check = |result: wrapdisk::error::Result<ImportedKey>, what: &str| {
        let e = result.expect_err(what);
        let said = format!("{e:?} {e} {:?}", e.advice());
        assert!(!said.contains(&secret[..24]), "{what}: {said}");
    };
    for len in (0..pem.trim_ascii_end().len()).step_by(37) {
        check(ImportedKey::from_pem(&pem[..len], None), "cut PEM");
    }
    for len in (0..der.len()).step_by(13) {
        check(ImportedKey::from_pem(&der[..len], None), "cut DER");
    }
    for len in (0..json.len()).step_by(41) {
        check(ImportedKey::from_jwk(&json.as_bytes()[..len]), "cut JWK");
    }
    check(ImportedKey::from_pem(&[0xff; 5000], None), "noise");
    check(ImportedKey::from_pem(&vec![b'x'; 70_000], None), "too long");
    check(ImportedKey::from_jwk(json.replace("RSA", "oct").as_bytes()), "kty");
    check(ImportedKey::from_jwk(json.replace("\"d\":\"", "\"d\":\"!").as_bytes()), "not base64url");
    check(ImportedKey::from_jwk(b"{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AQAB\"}"), "public JWK");
    // One flipped bit anywhere in the DER: refused, or harmless (the CRT values are computed anew).
    let reference = import(&ImportedKey::from_pem(&pem, None).unwrap());
    let dek = Secret::random().unwrap();
    let wrapped = reference.vault.wrap(&reference.kid, WrapAlg::RsaOaep256, &dek, &reference.call).unwrap();
    let mut harmless = 0;
    for at in (0..der.len()).step_by(29) {
        let mut bad = der.clone();
        bad[at] ^= 4;
        if let Ok(key) = ImportedKey::from_pem(&bad, None) {
            assert!(import(&key).unwrap(wrapped.bytes.clone()).unwrap().ct_eq(&dek), "byte {at}");
            harmless += 1;
        }
    }
    assert!(harmless > 0 && harmless < der.len() / 29, "{harmless}");
}
