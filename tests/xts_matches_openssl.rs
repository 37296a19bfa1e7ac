//! Question: does OpenSSL, which shares no code with either engine's tweak or batching, read and write our sectors?
//!
//! `openssl enc` refuses XTS, so this asks libcrypto through Python's `cryptography` (Debian: python3-cryptography).

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::Write;
use std::process::{Command, Stdio};

use wrapdisk::secret::{Secret, random};
use wrapdisk::units::{MAX_BYTES, Sector, SectorSize};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

/// One line in: encrypt|decrypt, sector size, first sector, key, data. One line out: the result. `index` in place
/// of the sector size's share of the tweak is the plain64 mistake, for the negative case.
const SCRIPT: &str = r#"
import sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.backends.openssl import backend
print(backend.openssl_version_text())
for line in sys.stdin:
    what, size, unit, first, key, data = line.split()
    size, unit, first, key, data = int(size), int(unit), int(first), bytes.fromhex(key), bytes.fromhex(data)
    out = b''
    try:
        for at in range(0, len(data), size):
            tweak = (first + at // size) * unit
            cipher = Cipher(algorithms.AES(key), modes.XTS(tweak.to_bytes(16, 'little')))
            worker = cipher.encryptor() if what == 'encrypt' else cipher.decryptor()
            out += worker.update(data[at:at + size]) + worker.finalize()
        print(out.hex())
    except ValueError as e:
        print('refused:', e)
"#;

/// OpenSSL's answers to `lines`.
fn openssl(lines: &[String]) -> Vec<String> {
    let hint = "this test needs python3 with the module `cryptography` (Debian: python3-cryptography)";
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{hint}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let text = lines.join("\n");
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{hint}: {}", output.status);
    writer.join().unwrap().unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    let mut answers = answers.lines().map(str::to_owned);
    let version = answers.next().unwrap();
    assert!(version.starts_with("OpenSSL "), "found {version}, allowed a libcrypto of OpenSSL");
    let answers: Vec<_> = answers.collect();
    assert_eq!(answers.len(), lines.len());
    answers
}

struct Case {
    key: [u8; 64],
    size: SectorSize,
    first: u64,
    plain: Vec<u8>,
}

impl Case {
    fn line(&self, what: &str, unit: u64, data: &[u8]) -> String {
        format!("{what} {} {unit} {} {} {}", self.size.bytes(), self.first, hex(&self.key), hex(data))
    }

    fn plain64(&self) -> u64 {
        self.size.bytes() / 512
    }

    fn encrypted(&self, engine: Engine) -> Vec<u8> {
        let key = VolumeKey::new(Secret::take(&mut self.key.clone()).unwrap().unwrap()).unwrap();
        let mut run = self.plain.clone();
        XtsCipher::new(&key, self.size, engine).unwrap().encrypt(Sector::new(self.first).unwrap(), &mut run);
        run
    }
}

/// Random keys and data; sectors at both ends of the largest disk, around 2^32 units, and a few in between.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [SectorSize::B512, SectorSize::B4096] {
        let end = MAX_BYTES / size.bytes();
        for (first, sectors) in
            [(0, 1), (1, 2), (7, 40), (0xffff_fffe, 5), ((1 << 32) / 8 - 2, 5), (end / 3, 9), (end - 3, 3)]
        {
            let (mut key, mut plain) = ([0; 64], vec![0; sectors * size.len()]);
            random(&mut key).unwrap();
            random(&mut plain).unwrap();
            cases.push(Case { key, size, first, plain });
        }
    }
    cases
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn openssl_encrypts_to_the_same_bytes() {
    let cases = cases();
    let lines: Vec<_> = cases.iter().map(|c| c.line("encrypt", c.plain64(), &c.plain)).collect();
    for (case, answer) in cases.iter().zip(openssl(&lines)) {
        for engine in Engine::available() {
            let ours = hex(&case.encrypted(engine));
            assert!(ours == answer, "{engine}: sector {} of {} bytes", case.first, case.size.bytes());
        }
    }
}

#[test]
fn openssl_decrypts_what_we_encrypt() {
    let cases = cases();
    for engine in Engine::available() {
        let lines: Vec<_> =
            cases.iter().map(|c| c.line("decrypt", c.plain64(), &c.encrypted(engine))).collect();
        for (case, answer) in cases.iter().zip(openssl(&lines)) {
            let same = hex(&case.plain) == answer;
            assert!(same, "{engine}: sector {} of {} bytes", case.first, case.size.bytes());
        }
    }
}

#[test]
fn a_tweak_that_counts_large_sectors_is_told_apart() {
    let large: Vec<_> = cases().into_iter().filter(|c| c.size == SectorSize::B4096 && c.first > 0).collect();
    let lines: Vec<_> = large.iter().map(|c| c.line("encrypt", 1, &c.plain)).collect();
    assert!(!lines.is_empty());
    for (case, answer) in large.iter().zip(openssl(&lines)) {
        for engine in Engine::available() {
            assert!(hex(&case.encrypted(engine)) != answer, "{engine}: sector {}", case.first);
        }
    }
}

#[test]
fn openssl_too_refuses_equal_halves() {
    let case = Case { key: [9; 64], size: SectorSize::B512, first: 0, plain: vec![0; 512] };
    let answers = openssl(&[case.line("encrypt", 1, &case.plain)]);
    assert!(answers[0].starts_with("refused: "), "{answers:?}");
    assert!(VolumeKey::new(Secret::take(&mut case.key.clone()).unwrap().unwrap()).is_err());
}
