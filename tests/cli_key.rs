//! Does `wrapdisk key` do what `az keyvault key` does, for people and for programs: make keys, take in the ones that
//! openssl made in every form, refuse what is no key with a message that says what it found, list, show, switch?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};
use support::{Home, run};

const FORMS: &str = "allowed PEM or DER of a PKCS#8, encrypted PKCS#8 or PKCS#1 RSA private key, or a JWK";

/// Runs openssl in this home.
fn openssl(home: &Home, line: &str) -> String {
    run("sh", ["-ec", &format!("cd '{}' && openssl {line}", home.root().display())])
}

#[test]
fn a_new_key_is_shown_listed_and_versioned() {
    let home = Home::ready();
    let made = home.json(["key", "create", "disk-kek2", "--size", "2048"]);
    assert_eq!(
        (&made["name"], &made["kty"], &made["size"]),
        (&"disk-kek2".into(), &"RSA".into(), &2048.into())
    );
    assert_eq!(made["attributes"]["enabled"], true);
    let version = made["version"].as_str().unwrap();
    let kid = made["kid"].as_str().unwrap();
    assert!(
        kid.starts_with("https://") && kid.ends_with(&format!(".vault.localhost/keys/disk-kek2/{version}")),
        "{kid}"
    );
    assert_eq!(home.json(["key", "show", "disk-kek2"]), made);
    assert_eq!(home.json(["key", "show", &format!("disk-kek2/{version}")]), made);

    let second = home.json(["key", "create", "DISK-KEK2", "--size", "3072"]);
    assert_eq!(home.json(["key", "show", "disk-kek2"]), second);
    assert_eq!(home.json(["key", "list-versions", "disk-kek2"]), json!([made, second]));
    let listed = home.json(["key", "list"]);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|k| &k["name"]).collect();
    assert_eq!(names, ["disk-kek", "disk-kek2"]);
    assert_eq!(listed[1], second);
}

#[test]
fn people_see_columns_and_fields() {
    let home = Home::ready();
    let key = home.json(["key", "show", "disk-kek"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (version, created) = (text(&key["version"]), text(&key["attributes"]["created"]));
    let table = format!(
        "NAME      VERSION                           TYPE      STATE    CREATED\n\
         disk-kek  {version}  RSA-3072  enabled  {created}"
    );
    assert_eq!(home.wrapdisk(["key", "list"]).ok(), table);
    assert_eq!(home.wrapdisk(["key", "list-versions", "disk-kek"]).ok(), table);
    assert_eq!(
        home.wrapdisk(["key", "show", "disk-kek"]).ok(),
        format!(
            "name:       disk-kek\nversion:    {version}\nkid:        {}\ntype:       RSA-3072\nenabled:    yes\n\
             operations: wrapKey unwrapKey\ncreated:    {created}\nupdated:    {}",
            text(&key["kid"]),
            text(&key["attributes"]["updated"])
        )
    );
}

#[test]
fn every_form_that_openssl_writes_is_taken_in() {
    let home = Home::ready();
    openssl(&home, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem");
    let public = openssl(&home, "pkey -in key.pem -pubout");
    fs::write(home.path("pass"), "import me\n").unwrap();
    for (form, line) in [
        ("pkcs8.pem", "pkcs8 -topk8 -nocrypt -in key.pem"),
        ("pkcs8.der", "pkcs8 -topk8 -nocrypt -outform DER -in key.pem"),
        ("pkcs1.pem", "rsa -traditional -in key.pem"),
        ("pkcs1.der", "rsa -traditional -outform DER -in key.pem"),
        ("aes.pem", "pkcs8 -topk8 -v2 aes-256-cbc -passout 'pass:import me' -in key.pem"),
        ("aes.der", "pkcs8 -topk8 -v2 aes-256-cbc -outform DER -passout 'pass:import me' -in key.pem"),
        ("scrypt.pem", "pkcs8 -topk8 -scrypt -passout 'pass:import me' -in key.pem"),
        ("text.pem", "rsa -text -traditional -in key.pem"),
    ] {
        openssl(&home, &format!("{line} -out {form}"));
        let name = form.replace('.', "-");
        let mut arguments = vec!["key", "import", &name, "--pem-file", form];
        if form.starts_with("aes") || form.starts_with("scrypt") {
            arguments.extend(["--passphrase-file", "pass"]);
        }
        assert_eq!(home.json(arguments)["size"], 2048, "{form}");
        assert_eq!(home.wrapdisk(["key", "show", &name, "--pem"]).ok(), public, "{form}");
    }
    // The judge tells keys apart.
    assert_ne!(home.wrapdisk(["key", "show", "disk-kek", "--pem"]).ok(), public);
}

/// The key in `key.pem` as a JSON Web Key.
fn jwk(home: &Home) -> Value {
    let key = rsa::PrivateKey::from_pkcs8_pem(&fs::read_to_string(home.path("key.pem")).unwrap()).unwrap();
    let text = |n: &rsa::BoxedUint| {
        let bytes = n.to_be_bytes();
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        URL_SAFE_NO_PAD.encode(&bytes[zeros..])
    };
    let [p, q] = key.primes() else { panic!("two primes") };
    json!({ "kty": "RSA", "n": text(key.n()), "e": text(key.e()), "d": text(key.d()), "p": text(p), "q": text(q) })
}

#[test]
fn a_json_web_key_is_taken_in_and_one_that_is_not_whole_is_refused() {
    let home = Home::ready();
    openssl(&home, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out key.pem");
    let whole = jwk(&home);
    let import = |value: &Value| {
        fs::write(home.path("key.jwk"), value.to_string()).unwrap();
        home.wrapdisk(["key", "import", "mine", "--jwk-file", "key.jwk"])
    };
    import(&whole).ok();
    assert_eq!(
        home.wrapdisk(["key", "show", "mine", "--pem"]).ok(),
        openssl(&home, "pkey -in key.pem -pubout")
    );

    let needed = "\n  needed: kty \"RSA\" and n, e, d, p, q as base64url strings";
    let mut public = whole.clone();
    public.as_object_mut().unwrap().remove("d");
    let err = import(&public).fails(1);
    assert!(
        err.starts_with(
            "wrapdisk: key.jwk: read a private key: found JSON without a whole RSA JWK (line 1, "
        ),
        "{err}"
    );
    assert!(err.ends_with(&format!(", {FORMS}{needed}")), "{err}");
    for (member, value, why) in [
        ("kty", "EC", "found a JWK of kty \"EC\""),
        ("kty", "RSA-HSM", "found a JWK of kty \"RSA-HSM\""),
        ("d", "not base64url!", "found a JWK whose d is not base64url"),
        ("q", whole["p"].as_str().unwrap(), "RSA private key: "),
        ("d", "AQAB", "RSA private key: "),
    ] {
        let mut bad = whole.clone();
        bad[member] = value.into();
        let err = import(&bad).fails(1);
        assert!(err.contains(why), "{member}: {err}");
        assert!(!err.contains(whole["d"].as_str().unwrap()), "a secret in a message: {err}");
    }
    assert_eq!(home.json(["key", "list-versions", "mine"]).as_array().unwrap().len(), 1);
}

#[test]
fn what_is_no_such_key_is_refused_by_what_was_found() {
    let home = Home::ready();
    openssl(&home, "genrsa -out key.pem 2048");
    for (file, line) in [
        ("small.pem", "genrsa -out small.pem 1024"),
        ("odd.pem", "genrsa -out odd.pem 2560"),
        ("e3.pem", "genrsa -3 -out e3.pem 2048"),
        ("ec.pem", "ecparam -name prime256v1 -genkey -noout -out ec.pem"),
        ("ed.pem", "genpkey -algorithm ed25519 -out ed.pem"),
        ("public.pem", "pkey -in key.pem -pubout -out public.pem"),
        ("old.pem", "rsa -in key.pem -traditional -aes128 -passout pass:x -out old.pem"),
        ("locked.pem", "pkcs8 -topk8 -in key.pem -passout pass:x -out locked.pem"),
    ] {
        openssl(&home, line);
        assert!(home.path(file).exists(), "{file}");
    }
    let key = fs::read(home.path("key.pem")).unwrap();
    fs::write(home.path("cut.pem"), &key[..key.len() / 2]).unwrap();
    fs::write(home.path("empty"), "").unwrap();
    fs::write(home.path("noise"), support::noise(5, 2000)).unwrap();
    fs::write(home.path("large"), vec![b'x'; 65537]).unwrap();
    fs::write(home.path("wrong"), "not it").unwrap();
    let read = |found: &str| format!("read a private key: found {found}, {FORMS}");
    let sizes = "allowed 2048, 3072 or 4096";
    let check = "\n  check it: openssl rsa -in FILE -check -noout";
    let locked = "read an encrypted private key: the passphrase does not open it, or its cipher is not one of PBES2 with \
                  AES (PBKDF2 or scrypt): PKCS#5 decryption failed";
    for (file, code, why) in [
        ("small.pem", 1, format!("RSA key size: found 1024 bits, {sizes}")),
        ("odd.pem", 1, format!("RSA key size: found 2560 bits, {sizes}")),
        (
            "e3.pem",
            1,
            format!("RSA private key: e: found 3, allowed an odd number from 65537 to 2^33{check}"),
        ),
        ("ec.pem", 1, read("PEM of a \"EC PRIVATE KEY\"")),
        ("ed.pem", 1, read("a key of algorithm 1.3.101.112 (not rsaEncryption)")),
        ("public.pem", 1, read("PEM of a \"PUBLIC KEY\"")),
        (
            "old.pem",
            1,
            read("PKCS#1 under OpenSSL's old encryption")
                + "\n  convert it: openssl pkcs8 -topk8 -in FILE -out NEW",
        ),
        ("locked.pem", 3, locked.to_owned()),
        ("cut.pem", 1, read("damaged PEM") + ": PEM error: PEM error in pre-encapsulation boundary"),
        ("empty", 1, read("0 bytes (allowed 1 to 65536)")),
        ("noise", 1, read("something else")),
        ("large", 1, read("65537 bytes (allowed 1 to 65536)")),
        ("missing", 1, "open: No such file or directory (os error 2)".to_owned()),
        (".", 1, "read: Is a directory (os error 21)".to_owned()),
    ] {
        let err = home
            .wrapdisk(["key", "import", "mine", "--pem-file", file, "--passphrase-file", "wrong"])
            .fails(code);
        assert_eq!(err, format!("wrapdisk: {file}: {why}"));
    }
    assert_eq!(home.json(["key", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_key_comes_through_a_pipe_and_never_together_with_its_passphrase() {
    let home = Home::ready();
    openssl(&home, "genrsa -out key.pem 2048");
    let mut command = home.command(["key", "import", "piped", "--pem-file", "-"]);
    let key = fs::File::open(home.path("key.pem")).unwrap();
    let done = command.stdin(Stdio::from(key)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(home.json(["key", "show", "piped"])["size"], 2048);
    assert_eq!(
        home.wrapdisk(["key", "import", "piped", "--pem-file", "-", "--passphrase-file", "-"]).fails(2),
        "wrapdisk: -: found one file for key and passphrase, allowed two"
    );
    home.wrapdisk(["key", "import", "piped"]).fails(2);
    home.wrapdisk(["key", "import", "piped", "--pem-file", "key.pem", "--jwk-file", "key.pem"]).fails(2);
}

#[test]
fn names_and_versions_that_are_none_are_refused() {
    let home = Home::ready();
    let vault = home.json(["key", "show", "disk-kek"])["kid"]
        .as_str()
        .unwrap()
        .split("/keys/")
        .next()
        .unwrap()
        .to_owned();
    for (arguments, name) in [
        (&["key", "show", "nosuch"][..], "nosuch"),
        (
            &["key", "show", "disk-kek/0123456789abcdef0123456789abcdef"],
            "disk-kek/0123456789abcdef0123456789abcdef",
        ),
        (&["key", "enable", "nosuch"], "nosuch"),
        (&["key", "disable", "nosuch", "--yes"], "nosuch"),
        (&["key", "disable", "disk-kek", "--version", "abc", "--yes"], "disk-kek/abc"),
        (&["key", "list-versions", "nosuch"], "nosuch"),
        (&["key", "show", "nosuch", "--pem"], "nosuch"),
    ] {
        let err = home.wrapdisk(arguments).fails(1);
        let wanted = format!(
            "wrapdisk: A key with (name/id) {name} was not found in this key vault (key {vault}/keys/{name}, identity \"admin\" ("
        );
        assert!(err.starts_with(&wanted), "{arguments:?}: {err}");
        assert!(err.contains("see what there is: wrapdisk key list"), "{err}");
    }
    for arguments in [
        &["key", "create", "k", "--size", "1024"][..],
        &["key", "show", "a/b/c"],
        &["key", "show", "no spaces"],
        &["key", "enable", "disk-kek/abc", "--version", "abc"],
    ] {
        home.wrapdisk(arguments).fails(2);
    }
    let err = home.wrapdisk(["key", "create", "no spaces"]).fails(1);
    assert!(
        err.starts_with("wrapdisk: The name is invalid: found \"no spaces\"")
            && err.ends_with("allowed are 1 to 127 of [0-9A-Za-z-]"),
        "{err}"
    );
    assert_eq!(home.json(["key", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn disabling_says_what_it_hits_and_enabling_takes_it_back() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    home.create("up.wd", "1M", &[]);
    let mount = home.mount("up.wd", &[]);
    let key = home.json(["key", "show", "disk-kek"]);
    let version = key["version"].as_str().unwrap();
    let done =
        home.wrapdisk(["key", "disable", "disk-kek", "--version", version, "--yes", "--output", "json"]);
    for disk in ["vm.wd", "up.wd"] {
        let line = format!("  {} will not mount any more\n", home.text(disk));
        assert!(done.err.contains(&line), "{}", done.err);
    }
    let place = mount.place.display();
    assert!(done.err.contains(&format!("  {place} (process ")), "{}", done.err);
    assert!(done.err.contains(") stops: its reads and writes fail until the key is back\n"), "{}", done.err);
    let disabled: Value = serde_json::from_str(&done.ok()).unwrap();
    assert_eq!(disabled["attributes"]["enabled"], false);
    assert!(home.wrapdisk(["key", "list"]).ok().contains("  disabled  "));
    home.wrapdisk(["check", "vm.wd"]).fails(3);
    mount.unmount();
    assert_eq!(home.json(["key", "enable", "disk-kek"])["attributes"]["enabled"], true);
    home.wrapdisk(["check", "vm.wd"]).ok();
    // A key that no disk needs goes without a word.
    home.wrapdisk(["key", "create", "idle", "--size", "2048"]).ok();
    assert_eq!(home.wrapdisk(["key", "disable", "idle"]).err, "");
}
