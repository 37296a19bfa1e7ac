//! A mounted container under another key version: what its own daemon does, and how others ask it to.
//!
//! Must never see: FUSE requests. The data key exists here for one rewrap at a time, and is wiped.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::live::LiveMount;
use super::protocol::{Ask, Rewrap, Rewrapped};
use super::{client, live_mounts};
use crate::dirs::Dirs;
use crate::envelope::{WrapAlg, WrappedDek};
use crate::error::{Error, ErrorKind, Result};
use crate::luks2::Header;
use crate::secret;
use crate::set::access::Access;
use crate::set::rewrap::{self, Need, Order, Source};
use crate::set::rotation::MountedDisks;
use crate::set::{Set, SetStore};
use crate::vault::local::LocalVault;

/// A vault elsewhere may take three calls of ten seconds each, and another rewrap of the same mount may come first.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often, and how far apart, a commit is tried that meets another one: that takes milliseconds.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

impl LiveMount {
    /// The sets and vaults; opened for this once where a passphrase opened the disk.
    pub(super) fn sets_and_vaults(&self) -> Result<Arc<Access>> {
        if let Some(access) = &self.access {
            return Ok(Arc::clone(access));
        }
        let vault = LocalVault::open(&self.state)?;
        Ok(Arc::new(Access::new(SetStore::open(&self.state)?, vault)))
    }

    /// The set that the container belongs to.
    pub(super) fn set(&self, access: &Access) -> Result<Option<Set>> {
        set_of(access, &self.container.header())
    }
}

/// The set that a header names, where it is known here.
pub(super) fn set_of(access: &Access, header: &Header) -> Result<Option<Set>> {
    let id = header.tokens().find_map(|(_, token)| token.set_id());
    Ok(id.map(|id| access.sets.by_id(id)).transpose()?.flatten())
}

/// For a peer.
pub(super) fn on_request(mount: &LiveMount, how: &Rewrap) -> Result<Rewrapped> {
    let access = mount.sets_and_vaults()?;
    let unknown = |what: &str| Error::new(ErrorKind::NotFound, format!("{what} is not known here"));
    let assigned = match &how.set {
        Some(id) => {
            let id = Uuid::try_parse(id).map_err(|_| unknown("the set"))?;
            Some(access.sets.by_id(id)?.ok_or_else(|| unknown("the set"))?)
        }
        None => None,
    };
    let wrapped = how.wrapped.as_ref().map(|text| STANDARD.decode(text)).transpose();
    let wrapped = wrapped.map_err(|e| Error::new(ErrorKind::InvalidInput, "wrapped key").caused_by(e))?;
    let header = match assigned {
        Some(set) => assign(mount, &access, &set, wrapped.as_deref())?,
        None => {
            let set = mount.set(&access)?.ok_or_else(|| unknown("the set of this disk"))?;
            rotate(mount, &access, &set)?
        }
    };
    Ok(Rewrapped { kids: header.tokens().map(|(_, token)| token.wrapped().kid.to_string()).collect() })
}

/// Brings the container under its set's active version, with a key that its own token gave.
pub(super) fn rotate(mount: &LiveMount, access: &Access, set: &Set) -> Result<Header> {
    let reason = format!("rotation of {}: {}, mounted", set.name, mount.container.path().display());
    change(mount, access, |header| {
        if rewrap::need(header, set) == Need::Nothing {
            return Ok(header.clone());
        }
        let order = Order { set, source: Source::Tokens, sole: false, reason: &reason };
        rewrap::rewrap(access, order, header, &*mount.container).map_err(|refused| refused.error)
    })
}

fn assign(mount: &LiveMount, access: &Access, set: &Set, wrapped: Option<&[u8]>) -> Result<Header> {
    let reason = format!("disk update {} --set {}", mount.container.path().display(), set.name);
    change(mount, access, |header| {
        let known = match wrapped {
            Some(_) => None,
            None => Some(access.unlock_by_anyone(header, &reason)?.key),
        };
        let source = match (&known, wrapped) {
            (_, Some(bytes)) => Source::Wrapped(WrappedDek {
                kid: set.active.clone(),
                alg: WrapAlg::RsaOaep256,
                bytes: bytes.to_vec(),
            }),
            (Some(key), None) => Source::Known(key),
            (None, None) => Source::Tokens,
        };
        let order = Order { set, source, sole: true, reason: &reason };
        rewrap::rewrap(access, order, header, &*mount.container).map_err(|refused| refused.error)
    })
}

/// One change of the header at a time. What another mount of the same container committed meanwhile is taken over.
fn change(mount: &LiveMount, access: &Access, work: impl Fn(&Header) -> Result<Header>) -> Result<Header> {
    let container = &mount.container;
    let _turn = container.turn();
    let known = container.header().seqid();
    container.reload()?;
    let before = container.header();
    let mut done = work(&before);
    for _ in 0..TRIES {
        // Another read-only mount of the same container is at it, or was faster.
        match &done {
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Busy) => {}
            _ => break,
        }
        std::thread::sleep(PAUSE);
        container.reload()?;
        done = work(&container.header());
    }
    // A copy of the key may lie in frames that are done with.
    secret::scrub_deep_stack();
    match done {
        Ok(header) => container.adopt(header),
        Err(e) => {
            // The first of two commits may have been made.
            if container.reload()?
                && let Some(guard) = &mount.guard
            {
                guard.header_changed();
            }
            return Err(e.at(container.path()));
        }
    }
    let header = container.header();
    if let Some(guard) = mount.guard.as_ref().filter(|_| header.seqid() != known) {
        guard.header_changed();
    }
    if let Some(path) = container.path_now() {
        let now = jiff::Timestamp::now().as_second();
        if header.seqid() == before.seqid() {
            access.record(&header, &path, now)?;
        } else {
            access.record_rewrap(&header, &path, now)?;
        }
    }
    Ok(header)
}

/// The live mounts of this user, as a rotation sees them.
#[derive(Debug)]
pub struct DiskMounts {
    dirs: Dirs,
}

impl DiskMounts {
    /// Nobody is asked yet.
    #[must_use]
    pub fn new(dirs: &Dirs) -> Self {
        Self { dirs: dirs.clone() }
    }

    /// Has the mount of a container do `what`; `None` when there is none.
    #[must_use]
    pub fn ask(&self, uuid: &str, path: &Path, what: &Rewrap) -> Option<Result<Rewrapped>> {
        let mounts = match live_mounts(&self.dirs) {
            Ok(mounts) => mounts,
            Err(e) => return Some(Err(e)),
        };
        // Of copies, the one at this path; one that was moved since it was mounted has another path.
        let mine = mounts.iter().filter(|m| m.uuid == uuid);
        let mine =
            mine.clone().find(|m| m.disk == path).or_else(|| mine.clone().find(|m| !m.disk.exists()))?;
        Some(client::ask(&self.dirs, &mine.mountpoint, &Ask::Rewrap(what.clone()), PATIENCE))
    }
}

impl MountedDisks for DiskMounts {
    fn rewrap(&self, uuid: &str, path: &Path) -> Option<Result<()>> {
        self.ask(uuid, path, &Rewrap::default()).map(|done| done.map(drop))
    }
}
