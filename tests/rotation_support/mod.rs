//! What tests of rotation stand on: a vault with one RSA-2048 key, a set over it, and containers that are headers only (the
//! data is a hole), made through the library: disks, snapshots and images.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wrapdisk::dirs::Dirs;
use wrapdisk::envelope::{KeyRef, Kid, WrappedDek};
use wrapdisk::error::Result;
use wrapdisk::keyring;
use wrapdisk::luks2::{Header, Holes, Kind, NewHeader};
use wrapdisk::set::access::Access;
use wrapdisk::set::rotation::{self, NoMounts, Report};
use wrapdisk::set::{NewSet, Set, SetStore};
use wrapdisk::store::{Access as Mode, FileStore};
use wrapdisk::units::ByteLen;
use wrapdisk::vault::local::{AuditFilter, IdentityKind, LocalVault, NewKey, Role, RsaBits};
use wrapdisk::xts::VolumeKey;

pub(crate) const KEY: &str = "kek";
pub(crate) const KINDS: [Kind; 3] = [Kind::Disk, Kind::Snapshot, Kind::Image];

pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    pub(crate) access: Access,
    /// Every container has this data key: it is wrapped once a version.
    pub(crate) key: VolumeKey,
    id: uuid::Uuid,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dirs = Dirs::under(dir.path());
        let vault = LocalVault::init(&dirs.state, "default").expect("a vault");
        let call = vault.admin("test");
        let key = vault.create_key(KEY, &NewKey::wrapping(RsaBits::B2048), &call).expect("a key");
        let identity = vault.create_identity("set-1", IdentityKind::System, &call).expect("an identity");
        vault.grant(identity, Role::CryptoServiceEncryptionUser, Some(KEY), &call).expect("a grant");
        let sets = SetStore::open(&dirs.state).expect("sets.db");
        let new = NewSet {
            name: "prod".into(),
            vault: vault.id(),
            key: key.kid.versionless().to_owned(),
            active: key.kid,
            pinned: false,
            identity,
        };
        let id = sets.create(&new).expect("a set").id;
        std::fs::create_dir(dir.path().join("disks")).expect("a folder");
        Self { dir, access: Access::new(sets, vault), key: VolumeKey::generate().expect("a key"), id }
    }

    pub(crate) fn vault(&self) -> &LocalVault {
        &self.access.vault
    }

    pub(crate) fn state(&self) -> PathBuf {
        Dirs::under(self.dir.path()).state
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("disks").join(name)
    }

    /// The set as it is now.
    pub(crate) fn set(&self) -> Set {
        self.access.sets.by_id(self.id).expect("sets.db").expect("the set")
    }

    /// The data key under the set's active version.
    pub(crate) fn wrapped(&self) -> WrappedDek {
        let set = self.set();
        keyring::wrap(self.vault(), &set.active, &self.key, &self.access.call(&set, "test")).expect("a wrap")
    }

    /// A container and its row in the registry.
    pub(crate) fn add(&self, name: &str, kind: Kind, wrapped: &WrappedDek) -> PathBuf {
        let path = self.path(name);
        let store = FileStore::create_new(&path).expect("a file");
        let size = ByteLen::new(1 << 20).expect("small");
        let new =
            NewHeader { label: String::new(), kind, size, holes: Holes::Zeros, discards: true, uuid: None };
        let mut header = Header::create(&new, &self.key).expect("a header");
        header.add_token(&self.set().token_label(), wrapped.clone(), &self.key).expect("a token");
        header.format(&store).expect("written");
        self.access.record(&header, &path, 1_700_000_000).expect("recorded");
        path
    }

    /// So many containers of all kinds.
    pub(crate) fn fill(&self, disks: usize, snapshots: usize, images: usize) -> Vec<PathBuf> {
        let wrapped = self.wrapped();
        let mut paths = Vec::new();
        for (kind, count) in KINDS.into_iter().zip([disks, snapshots, images]) {
            paths.extend((0..count).map(|n| self.add(&format!("{kind}-{n}.wd"), kind, &wrapped)));
        }
        paths
    }

    /// A new version of the key.
    pub(crate) fn new_version(&self) -> Kid {
        self.vault().rotate_key(KEY, &self.vault().admin("test")).expect("a version").kid
    }

    pub(crate) fn switch(&self, kid: &Kid, enabled: bool) {
        let call = self.vault().admin("test");
        self.vault().set_enabled(&KeyRef::from(kid), enabled, &call).expect("switched");
    }

    /// One run over everything that is not mounted.
    pub(crate) fn rotate(&self) -> Report {
        rotation::run(&self.access, &self.set(), &NoMounts, &|_, _| {}).expect("a report")
    }

    /// Audit records of an operation after that record.
    pub(crate) fn records(&self, operation: &str, after: u64) -> usize {
        let filter = AuditFilter { operation: Some(operation.to_owned()), after, ..Default::default() };
        self.vault().audit(&filter).expect("the audit").len()
    }

    pub(crate) fn audit_head(&self) -> u64 {
        self.vault().audit_head().expect("the audit").seq
    }
}

pub(crate) fn header(path: &Path) -> Header {
    Header::load(&FileStore::open(path, Mode::ReadOnly).expect("opens")).expect("a header")
}

/// The versions of a container's tokens.
pub(crate) fn kids(path: &Path) -> Vec<String> {
    header(path).tokens().map(|(_, token)| token.wrapped().kid.to_string()).collect()
}

/// Does the vault open it, with the key it was made with?
pub(crate) fn opens(scene: &Scene, path: &Path) -> Result<bool> {
    let unlocked = scene.access.unlock(&header(path), "test")?;
    Ok(unlocked.key.secret().ct_eq(scene.key.secret()))
}
