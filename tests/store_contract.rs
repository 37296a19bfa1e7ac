//! Does every store keep the contract of the trait? One suite, run over memory, files on file systems that are really
//! mounted, block devices and decorators. (tests/store_suite_finds_defects.rs shows that the suite can fail.)
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod store_support;

use std::path::Path;
use std::sync::Arc;

use store_support::suite::{LEN, Punch, Subject, index, keeps_the_contract, length, put};
use store_support::{LoopDevice, Mounted, open, sparse};
use wrapdisk::store::{
    Access, BackingStore, FaultPlan, FaultyStore, FileStore, LatchedStore, MemoryStore, sync_parent_dir,
};

fn file_in(dir: &Path) -> FileStore {
    let path = dir.join("vm.wd");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}"),
        _ => {}
    }
    let store = FileStore::create_new(&path).unwrap();
    store.set_len(length(LEN)).unwrap();
    sync_parent_dir(&path).unwrap();
    store
}

fn a_file_keeps_the_contract(dir: &Path, punch: Punch, sees_holes: bool) {
    keeps_the_contract(&Subject { fresh: &|| Box::new(file_in(dir)), punch, sees_holes, grows: true });
}

fn a_device_keeps_the_contract(backing: &Path, punch: Punch) {
    sparse(backing, LEN);
    let device = LoopDevice::over(backing);
    let fresh = || -> Box<dyn BackingStore> {
        let store = open(device.path(), Access::ReadWrite);
        assert!(store.is_block_device());
        put(&store, 0, &vec![0; index(LEN)]);
        Box::new(store)
    };
    keeps_the_contract(&Subject { fresh: &fresh, punch, sees_holes: false, grows: false });
}

fn memory() -> MemoryStore {
    MemoryStore::new(index(LEN))
}

#[test]
fn memory_keeps_the_contract() {
    let subject = |fresh| Subject { fresh, punch: Punch::Zeroes, sees_holes: false, grows: true };
    keeps_the_contract(&subject(&|| Box::new(memory())));
    keeps_the_contract(&subject(&|| Box::new(Arc::new(memory()))));
}

#[test]
fn a_file_in_the_temporary_folder_keeps_the_contract() {
    // Whatever file system that is: it has holes on all that are in use here.
    a_file_keeps_the_contract(tempfile::tempdir().unwrap().path(), Punch::Frees, true);
}

#[test]
fn a_file_on_ext4_keeps_the_contract() {
    a_file_keeps_the_contract(&Mounted::image("mkfs.ext4", 64).path(), Punch::Frees, true);
}

#[test]
fn a_file_on_xfs_keeps_the_contract() {
    a_file_keeps_the_contract(&Mounted::image("mkfs.xfs", 320).path(), Punch::Frees, true);
}

#[test]
fn a_file_on_btrfs_keeps_the_contract() {
    a_file_keeps_the_contract(&Mounted::image("mkfs.btrfs", 256).path(), Punch::Frees, true);
}

#[test]
fn a_file_on_tmpfs_keeps_the_contract() {
    a_file_keeps_the_contract(&Mounted::virtual_fs("tmpfs", "size=32m").path(), Punch::Frees, true);
}

/// ramfs knows neither holes nor fallocate: what a poor file system looks like.
#[test]
fn a_file_on_a_file_system_without_holes_keeps_the_contract() {
    a_file_keeps_the_contract(&Mounted::virtual_fs("ramfs", "mode=700").path(), Punch::Refused, false);
}

#[test]
fn a_block_device_keeps_the_contract() {
    a_device_keeps_the_contract(&tempfile::tempdir().unwrap().path().join("image"), Punch::Zeroes);
}

/// A loop device over ramfs has no WRITE ZEROES: what a poor device looks like.
#[test]
fn a_block_device_that_cannot_discard_keeps_the_contract() {
    a_device_keeps_the_contract(
        &Mounted::virtual_fs("ramfs", "mode=700").path().join("image"),
        Punch::Refused,
    );
}

#[test]
fn decorators_at_rest_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let stores: [&dyn Fn() -> Box<dyn BackingStore>; 3] = [
        &|| Box::new(LatchedStore::new(file_in(dir.path()))),
        &|| Box::new(FaultyStore::new(file_in(dir.path()), FaultPlan::default())),
        &|| Box::new(FaultyStore::recording(file_in(dir.path()), FaultPlan::default()).unwrap()),
    ];
    for fresh in stores {
        keeps_the_contract(&Subject { fresh, punch: Punch::Frees, sees_holes: true, grows: true });
    }
}
