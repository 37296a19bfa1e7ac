//! Does first use on a full disk leave nothing that the next one, with space, would stumble over? Every size of a file system
//! from too small to large enough.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_support;

use store_support::{Mounted, run, text};
use wrapdisk::error::ErrorKind;
use wrapdisk::set::SetStore;
use wrapdisk::vault::local::{LocalVault, Page};

#[test]
fn a_vault_that_does_not_fit_is_made_whole_once_there_is_space() {
    let (mut refused, mut made) = (0, 0);
    for kib in (4..400).step_by(12) {
        let full = Mounted::virtual_fs("tmpfs", &format!("size={kib}k,mode=700"));
        let state = full.path();
        match LocalVault::init(&state, "default") {
            Ok(vault) => {
                vault.verify_audit().unwrap();
                made += 1;
            }
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Unreachable), "{kib} KiB: {e:?}");
                refused += 1;
            }
        }
        run("mount", &["-o", "remount,size=2m", text(&full.path())]);
        let vault = match LocalVault::exists(&state) {
            true => LocalVault::open(&state).unwrap_or_else(|e| panic!("{kib} KiB: {e:?}")),
            false => LocalVault::init(&state, "default").unwrap_or_else(|e| panic!("{kib} KiB: {e:?}")),
        };
        vault.list_keys(&Page::default(), &vault.admin("x")).unwrap();
        vault.verify_audit().unwrap();
    }
    // Negative: a file system that is too small refuses, and one that is large enough does not.
    assert!(refused > 3 && made > 3, "{refused} refused, {made} made: the sizes do not cover the border");
}

#[test]
fn sets_that_do_not_fit_are_made_whole_once_there_is_space() {
    let (mut refused, mut made) = (0, 0);
    for kib in (4..200).step_by(4) {
        let full = Mounted::virtual_fs("tmpfs", &format!("size={kib}k,mode=700"));
        let state = full.path();
        match SetStore::open(&state) {
            Ok(_) => made += 1,
            Err(_) => refused += 1,
        }
        run("mount", &["-o", "remount,size=2m", text(&full.path())]);
        let sets = SetStore::open(&state).unwrap_or_else(|e| panic!("{kib} KiB: {e:?}"));
        sets.pin("6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31", [1; 16]).unwrap();
    }
    assert!(refused > 3 && made > 3, "{refused} refused, {made} made: the sizes do not cover the border");
}
