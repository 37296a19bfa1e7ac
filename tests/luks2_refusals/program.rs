//! Through the program: the file in front, the advice behind, and the exit code.

use std::process::Command;

use serde_json::json;
use wrapdisk::store::MemoryStore;

use crate::luks2_support::{Copy, HDR, SMALL_FILE, image, small, small_json};

/// Exit code and standard error of `wrapdisk info` on a file with these bytes, which must not be changed.
fn info(store: &MemoryStore) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vm.wd"), store.snapshot()).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_wrapdisk"))
        .args(["info", "vm.wd"])
        .current_dir(dir.path())
        .env("WRAPDISK_HOME", dir.path().join("home"))
        .output()
        .unwrap();
    assert!(std::fs::read(dir.path().join("vm.wd")).unwrap() == store.snapshot(), "the file was changed");
    let said = String::from_utf8(done.stderr).unwrap();
    let folder = format!("{}/", dir.path().canonicalize().unwrap().display());
    (done.status.code().unwrap(), said.trim().replace(&folder, ""))
}

#[test]
fn damage_is_5_and_what_we_do_not_open_is_1() {
    let (code, said) = info(&small(&small_json().to_string()));
    assert_eq!((code, said.as_str()), (0, ""), "the base is good");

    let mut json = small_json();
    json["segments"]["0"]["encryption"] = json!("cipher_null-ecb\u{1b}[2J");
    let (code, said) = info(&small(&json.to_string()));
    let found = "segments.0.encryption: found \"cipher_null-ecb\\u{1b}[2J\", allowed \"aes-xts-plain64\"";
    assert_eq!((code, said), (1, format!("wrapdisk: vm.wd: {found}")));

    let mut json = small_json();
    json["config"]["keyslots_size"] = json!("4095");
    let (code, said) = info(&small(&json.to_string()));
    let found = "config.keyslots_size: found 4095, allowed a multiple of 4096, at most 128 MiB";
    assert_eq!((code, said), (5, format!("wrapdisk: vm.wd: {found}")));

    let mut json = small_json();
    json["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
    let (code, said) = info(&small(&json.to_string()));
    assert_eq!(code, 1);
    assert!(
        said.contains("found \"online-reencrypt-v2\", allowed none") && said.contains("--resume-only"),
        "{said}"
    );
}

#[test]
fn both_copies_bad_is_5_and_advises_a_restore() {
    let torn = Copy::primary(&small_json().to_string()).bytes(HDR)[..5000].to_vec();
    let (code, said) = info(&image(&torn, &[], SMALL_FILE));
    assert_eq!(code, 5);
    assert!(
        said.starts_with("wrapdisk: vm.wd: both header copies are bad: checksum: found another one"),
        "{said}"
    );
    assert!(said.contains("wrapdisk header restore FILE BACKUP"), "{said}");
}

/// `info` reads only: a losing copy stays as it is (a writable open repairs it).
#[test]
fn a_read_only_open_repairs_nothing() {
    let primary = Copy::primary(&small_json().to_string());
    let newer = Copy { seqid: 7, ..primary.clone() };
    for store in [
        image(&newer.bytes(HDR), &primary.secondary().bytes(HDR), SMALL_FILE),
        image(&primary.bytes(HDR), &newer.secondary().bytes(HDR), SMALL_FILE),
        image(&primary.bytes(HDR), &[], SMALL_FILE),
    ] {
        let (code, said) = info(&store);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("header is"), "a warning: {said}");
    }
}
