//! Is no secret (passphrase, RSA private key, root key, volume key) in an argument, an environment, a message at any level
//! of detail, a log, an audit record or a file that is not made for it (KEY-VAULT section 10)?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cli_support::{Terminal, mode, overwrite};
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::PrivateKeyParts;
use support::{Done, Home, run};
use wrapdisk::vault::local::{ImportedKey, LocalVault, NewKey};

const TYPED: &str = "typed: correct horse battery staple";
const FILED: &str = "filed: squeamish ossifrage, at last";
const KEY_FILE: &str = "of the key file: open sesame, please";

/// A secret in every form in which a program might let it slip; of long ones, every piece of 16 bytes.
struct Secret {
    what: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn new(what: &'static str, bytes: &[u8]) -> Self {
        let mut forms = Vec::new();
        for piece in bytes.chunks_exact(16) {
            let hex: String = piece.iter().map(|b| format!("{b:02x}")).collect();
            forms.extend([piece.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()]);
            forms.push(piece.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ").into_bytes());
            forms.push(piece.iter().rev().copied().collect());
        }
        // Base64 depends on where in a text the secret begins; its edges depend on the neighbours.
        for shift in 0..3 {
            let text = STANDARD.encode([&vec![0; shift], bytes].concat());
            let inner: Vec<u8> = text.into_bytes()[4..].to_vec();
            forms.extend(inner.chunks_exact(20).map(<[u8]>::to_vec));
        }
        Self { what, forms }
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.forms.iter().any(|form| memmem(text, form))
    }
}

fn memmem(text: &[u8], word: &[u8]) -> bool {
    let first = word[0];
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| *b == first) {
        if rest[at..].starts_with(word) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// The blocks of a file that are not all zeros: most of a disk is.
fn without_holes(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    bytes.chunks(4096).filter(|block| block.iter().any(|b| *b != 0)).flatten().copied().collect()
}

/// A home whose vault has a private key that we know, in `key.pem`; all it will ever be asked to keep.
fn home_with_known_secrets() -> (Home, Vec<Secret>) {
    let home = Home::new();
    let pem = run("openssl", ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]) + "\n";
    let vault = LocalVault::init(&home.path("home/state"), "default").unwrap();
    let material = ImportedKey::from_pem(pem.as_bytes(), None).unwrap();
    vault.import_key("disk-kek", &material, &NewKey::default(), &vault.admin("test")).unwrap();
    let key = rsa::PrivateKey::from_pkcs8_pem(&pem).unwrap();
    let mut secrets = vec![
        Secret::new("the typed passphrase", TYPED.as_bytes()),
        Secret::new("the passphrase in a file", FILED.as_bytes()),
        Secret::new("the passphrase of a key file", KEY_FILE.as_bytes()),
        Secret::new("the root key", &fs::read(home.path("home/state/root.key")).unwrap()),
        Secret::new("the private exponent", &key.d().to_be_bytes()),
    ];
    secrets.extend(key.primes().iter().map(|p| Secret::new("a prime", &p.to_be_bytes())));
    fs::write(home.path("key.pem"), pem).unwrap();
    (home, secrets)
}

/// Everything that was said and could be read by others, with a name for each piece.
#[derive(Default)]
struct Heard(Vec<(String, Vec<u8>)>);

impl Heard {
    fn hear(&mut self, home: &Home, arguments: &[&str], code: i32) {
        let done: Done = home.wrapdisk([arguments, &["-vv"]].concat());
        assert_eq!(done.code(), code, "{arguments:?}: {}{}", done.out, done.err);
        self.0.push((format!("output of {arguments:?}"), (done.out + &done.err).into_bytes()));
    }

    /// Arguments and environment of a process.
    fn look_at(&mut self, pid: u32) {
        for file in ["cmdline", "environ"] {
            let path = PathBuf::from(format!("/proc/{pid}/{file}"));
            self.0.push((path.display().to_string(), fs::read(path).unwrap()));
        }
    }

    /// Every file below the home but those that are made for a secret.
    fn read_all(&mut self, home: &Home, but: &[&str]) {
        let mut folders = vec![home.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
                let meta = fs::symlink_metadata(&path).unwrap();
                if meta.is_dir() && !path.ends_with("m") {
                    folders.push(path);
                } else if meta.is_file() && !but.iter().any(|name| path.ends_with(name)) {
                    self.0.push((path.display().to_string(), without_holes(&path)));
                }
            }
        }
    }

    fn holding(&self, secret: &Secret) -> Vec<&str> {
        let hits = self.0.iter().filter(|(_, text)| secret.is_in(text));
        hits.map(|(name, _)| name.as_str()).collect()
    }
}

#[test]
fn no_secret_is_told_to_anybody() {
    let (home, mut secrets) = home_with_known_secrets();
    let mut heard = Heard::default();
    fs::create_dir(home.path("m")).unwrap();
    fs::write(home.path("pass"), FILED).unwrap();
    fs::write(home.path("wrong"), TYPED.replace("horse", "mouse")).unwrap();
    fs::write(home.path("key.pass"), KEY_FILE).unwrap();
    let locked =
        ["pkcs8", "-topk8", "-in", home.text("key.pem"), "-passout", &format!("pass:{KEY_FILE}"), "-out"];
    run("openssl", [&locked[..], &[home.text("locked.pem")]].concat());

    // A passphrase that is typed, while the process is looked at.
    let mut terminal = Terminal::start(&home.command([
        "-vv",
        "create",
        "typed.wd",
        "--size",
        "1M",
        "--recovery-passphrase",
    ]));
    terminal.answer("Recovery passphrase: ", TYPED);
    terminal.answer("Recovery passphrase (again): ", TYPED);
    heard.look_at(terminal.pid());
    let (done, _) = terminal.end();
    assert!(done.status.success(), "{}", done.out);
    heard.0.push(("the terminal".to_owned(), done.out.into_bytes()));

    heard.hear(&home, &["create", "filed.wd", "--size", "1M", "--recovery-file", "pass"], 0);
    heard.hear(&home, &["mount", "filed.wd", "m", "--passphrase-file", "pass"], 0);
    let status = home.json(["status"]);
    heard.look_at(u32::try_from(status[0]["pid"].as_u64().unwrap()).unwrap());
    overwrite(&home.path("m/disk.img"), b"data");
    heard.hear(&home, &["status"], 0);
    heard.hear(&home, &["umount", "m"], 0);
    heard.hear(&home, &["mount", "typed.wd", "m"], 0);
    let status = home.json(["status"]);
    heard.look_at(u32::try_from(status[0]["pid"].as_u64().unwrap()).unwrap());
    for words in [
        &["check", "typed.wd"][..],
        &["info", "typed.wd"],
        &["volume-key", "typed.wd", "--output", "typed.key", "--yes"],
        &["header", "dump", "typed.wd"],
        &["header", "backup", "typed.wd", "typed.header"],
        &["umount", "m"],
        &["seal", "filed.wd"],
        &["key", "import", "mine", "--pem-file", "locked.pem", "--passphrase-file", "key.pass"],
        &["key", "import", "mine", "--pem-file", "key.pem"],
        &["key", "show", "mine"],
        &["key", "show", "mine", "--pem"],
        &["key", "list", "--output", "json"],
        &["set", "show", "default", "--output", "json"],
    ] {
        heard.hear(&home, words, 0);
    }
    // Failures speak more.
    for (words, code) in [
        (&["mount", "typed.wd", "m", "--passphrase-file", "wrong"][..], 3),
        (&["key", "import", "mine", "--pem-file", "locked.pem", "--passphrase-file", "pass"], 3),
        (&["key", "import", "mine", "--pem-file", "key.pass"], 1),
        (&["key", "import", "mine", "--jwk-file", "key.pem"], 1),
        (&["volume-key", "typed.wd", "--output", "typed.key", "--yes"], 1),
        (&["mount", "key.pem", "m"], 5),
    ] {
        heard.hear(&home, words, code);
    }

    let volume_key = fs::read(home.path("typed.key")).unwrap();
    secrets.push(Secret::new("the volume key", &volume_key));
    heard.read_all(&home, &["key.pem", "locked.pem", "pass", "wrong", "key.pass", "root.key", "typed.key"]);
    for name in ["vault.db", "sets.db", "mount.log", "typed.wd", "filed.wd", "typed.header"] {
        assert!(heard.0.iter().any(|(path, _)| path.ends_with(&format!("/{name}"))), "{name} was not read");
    }
    for secret in &secrets {
        assert_eq!(heard.holding(secret), [""; 0], "{}", secret.what);
    }
    for (name, wanted) in [("typed.key", "0400"), ("typed.header", "0400"), ("home/state/root.key", "0600")] {
        assert_eq!(mode(&home.path(name)), wanted, "{name}");
    }
}

/// The judge finds each secret where it is meant to be, and every form of it where it is not.
#[test]
fn the_judge_finds_what_is_there() {
    let (home, secrets) = home_with_known_secrets();
    let mut heard = Heard::default();
    heard.read_all(&home, &[]);
    let named = |what: &str| secrets.iter().find(|s| s.what == what).unwrap();
    assert_eq!(heard.holding(named("the root key")), [home.text("home/state/root.key")]);
    assert_eq!(heard.holding(named("the private exponent")), [home.text("key.pem")]);
    let bytes = fs::read(home.path("home/state/root.key")).unwrap();
    let secret = Secret::new("it", &bytes);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    for text in [
        format!("key={hex}").into_bytes(),
        format!("{:?}", bytes).into_bytes(),
        format!("xx{}", STANDARD.encode([b"ab", &bytes[..]].concat())).into_bytes(),
        [b"half: ", &bytes[16..]].concat(),
    ] {
        assert!(secret.is_in(&text), "{}", String::from_utf8_lossy(&text));
    }
    assert!(!secret.is_in(Path::new("nothing of the kind").as_os_str().as_encoded_bytes()));
}
