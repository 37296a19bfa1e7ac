//! Rotation of a set: find the key's newest version, begin, rewrap every container, end (KEY-VAULT section 8).
//!
//! Any process does any part: the timer, a command, each mount for its own container. What is left is in `sets.db`, so a run
//! that was killed is taken up by the next one, which finds only what is left.
//!
//! Must never see: sockets, FUSE. It reaches mounted disks through [`MountedDisks`].
//!
//! Invariants:
//! 1. What fails or is missing stays listed with its error; the others go on.
//! 2. After a denial, nothing more is asked of the same key version in the same run.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::luks2::Header;
use crate::store::{Access as StoreAccess, FileStore};
use crate::sync::{Mutex, lock};
use crate::vault::{Denial, KeyInfo, Kid, VaultError};

use super::access::Access;
use super::find::Places;
use super::provision;
use super::rewrap::{self, Need, Order, Refused, Source};
use super::{ContainerRecord, NextKey, PreviousKey, Set, Trouble, now};

/// Containers are rewrapped by so many threads at once.
const PARALLEL: usize = 4;

/// How long a set has for all its containers, from the making of the version.
pub const DEADLINE: i64 = 3600;

/// The mounts of this machine, which alone may change the containers they hold.
pub trait MountedDisks: Send + Sync {
    /// Has the mount that serves this container bring it under its set's active version; what it cannot do itself it says.
    /// `None` when nobody here has it mounted.
    fn rewrap(&self, uuid: &str, path: &Path) -> Option<Result<()>>;
}

/// Whether there is something to begin.
#[derive(Debug)]
pub enum Found {
    /// The active version is the one to be used.
    Current,
    /// A newer one is.
    Newer(Box<KeyInfo>),
    /// A newer one is there, and will be valid then (unix seconds).
    NotYet(Kid, i64),
}

/// How a set's rotation stands after a run.
#[derive(Debug)]
pub struct Report {
    /// As it is now.
    pub set: Set,
    /// This run made another version the active one.
    pub began: bool,
    /// A version that is not valid yet.
    pub not_yet: Option<(Kid, i64)>,
    /// Containers brought under the active version by this run.
    pub rewrapped: usize,
    /// What is left, each with its error.
    pub left: Vec<(ContainerRecord, Trouble, ErrorKind)>,
    /// Why the key could not be looked at.
    pub trouble: Option<(Trouble, ErrorKind)>,
}

impl Report {
    /// Nothing was done yet to a set as it is.
    #[must_use]
    pub const fn begun(set: Set) -> Self {
        Self { set, began: false, not_yet: None, rewrapped: 0, left: Vec::new(), trouble: None }
    }

    /// Everything that should have been done is done.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.left.is_empty() && self.trouble.is_none()
    }
}

/// Looks for the version that a set is to be under. A pinned set stays where it is.
///
/// # Errors
/// Why it cannot be said, or why the newest cannot be used; with the class of the failure.
pub fn find(access: &Access, set: &Set, now: i64) -> Result<Found, (Trouble, ErrorKind)> {
    if set.pinned {
        return Ok(Found::Current);
    }
    let info = match access.describe_latest(set, &format!("rotation of {}: look for a new version", set.name))
    {
        Ok(Ok(info)) => info,
        Ok(Err(e)) => {
            let code = code_of(&e);
            let e = Error::from(e);
            return Err((trouble(now, None, code, &e), e.kind()));
        }
        Err(e) => return Err((trouble(now, None, code_of_kind(e.kind()), &e), e.kind())),
    };
    if info.kid == set.active {
        return Ok(Found::Current);
    }
    if let Some(from) = info.not_before.filter(|from| now < *from && info.enabled) {
        return Ok(Found::NotYet(info.kid, from)); // pending, no error (RULINGS 30)
    }
    if let Err(e) = provision::usable(&set.name, &info, now) {
        let code = if info.enabled { "KeyExpired" } else { "KeyVaultKeyNotEnabled" };
        return Err((trouble(now, Some(info.kid.as_str()), code, &e), e.kind()));
    }
    Ok(Found::Newer(Box::new(info)))
}

/// Finds and begins. The set as it is then, and what hinders it, which is noted in the set as well.
///
/// # Errors
/// `sets.db` cannot be changed.
pub fn begin(access: &Access, set: &Set, now: i64) -> Result<Report> {
    let mut report = Report::begun(set.clone());
    match find(access, set, now) {
        Ok(Found::Current) => {}
        Ok(Found::NotYet(kid, from)) => report.not_yet = Some((kid, from)),
        Ok(Found::Newer(info)) => {
            let next = NextKey {
                vault: set.vault,
                kid: info.kid.clone(),
                pinned: set.pinned,
                identity: set.identity,
                due: info.created.saturating_add(DEADLINE),
            };
            report.began = access.sets.begin_rotation(set, &next, now)?.is_some();
            if report.began {
                log::info!("set {}: rotating to {}", set.name, info.kid);
            }
        }
        Err(hindered) => report.trouble = Some(hindered),
    }
    if let Some(set) = access.sets.by_id(set.id)? {
        report.set = set;
    }
    Ok(report)
}

/// One run: finds, begins, rewraps what is left, ends. `progress` is told how many of how many containers are through.
///
/// # Errors
/// `sets.db` cannot be read or changed. What concerns one container or the key is in the report.
pub fn run(
    access: &Access,
    set: &Set,
    mounted: &dyn MountedDisks,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report> {
    let mut report = begin(access, set, now())?;
    sweep(access, &mut report, mounted, progress)?;
    finish(access, &mut report)?;
    Ok(report)
}

/// Rewraps whatever the registry shows under another version.
///
/// # Errors
/// `sets.db` cannot be read.
pub fn sweep(
    access: &Access,
    report: &mut Report,
    mounted: &dyn MountedDisks,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<()> {
    let set = &report.set;
    let left: Vec<_> =
        access.sets.containers(Some(set.id))?.into_iter().filter(|c| !set.is_done(&c.kids)).collect();
    let run = Run { access, set, mounted, denied: Mutex::default(), places: Places::new(&access.sets) };
    let (next, through) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(left.len()) {
            scope.spawn(|| {
                while let Some(container) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = run.container(container);
                    lock(&results).push((container.clone(), done));
                    progress(through.fetch_add(1, Ordering::Relaxed) + 1, left.len());
                }
            });
        }
    });
    let mut results = std::mem::take(&mut *lock(&results));
    results.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    for (container, done) in results {
        match done {
            Ok(()) => report.rewrapped += 1,
            Err((trouble, kind)) => report.left.push((container, trouble, kind)),
        }
    }
    Ok(())
}

/// Ends the rotation when nothing is left, and notes in the set what hinders it.
///
/// # Errors
/// `sets.db` cannot be changed.
pub fn finish(access: &Access, report: &mut Report) -> Result<()> {
    let id = report.set.id;
    let now = now();
    if access.sets.end_rotation(id, now)? {
        log::info!("set {}: all containers are under {}", report.set.name, report.set.active);
        drop_identities(access, &report.set);
    }
    let denied =
        report.left.iter().find(|(_, _, kind)| *kind == ErrorKind::Denied).map(|(_, t, _)| t.clone());
    let outage = || report.left.iter().find(|(_, t, _)| t.transient).map(|(_, t, _)| t.clone());
    let late = || {
        let late = report.left.iter().filter(|(c, ..)| report.set.is_late(&c.kids, now)).count();
        (late > 0).then(|| {
            let message = format!("{late} container(s) are not under the active version after an hour");
            let e = Error::new(ErrorKind::Other, message);
            trouble(now, Some(report.set.active.as_str()), "Late", &e)
        })
    };
    let why = report.trouble.as_ref().map(|(t, _)| t.clone()).or(denied).or_else(late).or_else(outage);
    access.sets.set_trouble(id, why.as_ref())?;
    if let Some(set) = access.sets.by_id(id)? {
        report.set = set;
    }
    Ok(())
}

/// An identity in the embedded vault that a set had before it moved to a vault elsewhere: nothing is asked in its name any
/// more, and what it was granted ends with it.
fn drop_identities(access: &Access, set: &Set) {
    let vault = &access.vault;
    let unused = |old: &&PreviousKey| old.vault == vault.id() && old.identity != set.identity;
    let gone: BTreeSet<Uuid> = set.previous.iter().filter(unused).map(|old| old.identity).collect();
    for identity in gone {
        let call = vault.admin(&format!("rotation of {}: its old identity", set.name));
        if let Err(e) = vault.remove_identity(identity, &call) {
            log::warn!("identity {identity}: {}", VaultError::from(e));
        }
    }
}

/// What a run keeps to itself.
struct Run<'a> {
    access: &'a Access,
    set: &'a Set,
    mounted: &'a dyn MountedDisks,
    /// Key versions that were refused in this run.
    denied: Mutex<Vec<(String, Trouble)>>,
    places: Places<'a>,
}

impl Run<'_> {
    /// One row of the registry; what hinders it is noted in the row.
    fn container(&self, container: &ContainerRecord) -> Result<(), (Trouble, ErrorKind)> {
        if let Some(trouble) = self.refused(&container.kids) {
            self.note(container, &trouble);
            return Err((trouble, ErrorKind::Denied));
        }
        let Err(refused) = self.rewrap(container) else { return Ok(()) };
        let kind = refused.error.kind();
        let code = match kind {
            ErrorKind::NotFound => "Missing",
            kind => code_of_kind(kind),
        };
        let kid = refused.kid.as_deref();
        let trouble = trouble(now(), kid.or(Some(self.set.active.as_str())), code, &refused.error);
        if let Some(kid) = kid.filter(|_| kind == ErrorKind::Denied) {
            lock(&self.denied).push((kid.to_owned(), trouble.clone()));
        }
        self.note(container, &trouble);
        Err((trouble, kind))
    }

    /// Was a version that this container needs refused already?
    fn refused(&self, kids: &[String]) -> Option<Trouble> {
        let denied = lock(&self.denied);
        let hit =
            |kid: &str| kid == self.set.active.as_str() || !kids.is_empty() && kids.iter().all(|k| k == kid);
        denied.iter().find(|(kid, _)| hit(kid)).map(|(_, trouble)| trouble.clone())
    }

    fn note(&self, container: &ContainerRecord, trouble: &Trouble) {
        if let Err(e) = self.access.sets.container_trouble(&container.uuid, &container.path, trouble) {
            log::warn!("{}", e.chain());
        }
    }

    fn rewrap(&self, container: &ContainerRecord) -> Result<(), Refused> {
        let uuid = &container.uuid;
        let path = match self.places.of(container) {
            Some(path) => path,
            // Its file has no name any more, or another one: who has it mounted still holds it.
            None => {
                return self
                    .mounted
                    .rewrap(uuid, &container.path)
                    .unwrap_or_else(|| missing(container))
                    .map_err(Into::into);
            }
        };
        match unmounted(self.access, self.set, &path) {
            Err(refused) if refused.error.kind() == ErrorKind::Busy => {
                self.mounted.rewrap(uuid, &path).map_or(Err(refused), |done| done.map_err(Into::into))
            }
            done => done,
        }
    }
}

fn missing(container: &ContainerRecord) -> Result<()> {
    Err(Error::new(ErrorKind::NotFound, "no such file, nor anywhere near the set's other containers")
        .at(&container.path)
        .hint("find it: wrapdisk set scan DIR; if it is gone for good: wrapdisk set forget DISK"))
}

/// A container that nobody has mounted.
fn unmounted(access: &Access, set: &Set, path: &Path) -> Result<(), Refused> {
    let store = FileStore::open(path, StoreAccess::ReadWrite)?;
    let header = Header::load(&store).map_err(|e| e.at(path))?;
    header.repair_copies(&store).map_err(|e| e.at(path))?;
    let reason = format!("rotation of {}: {}", set.name, path.display());
    if rewrap::need(&header, set) == Need::Nothing {
        return Ok(access.record(&header, path, now()).map(drop)?);
    }
    let order = Order { set, source: Source::Tokens, sole: false, reason: &reason };
    let header = rewrap::rewrap(access, order, &header, &store)
        .map_err(|refused| Refused { error: refused.error.at(path), ..refused })?;
    Ok(access.record_rewrap(&header, path, now())?)
}

/// Azure's word where there is one.
fn code_of(e: &VaultError) -> &'static str {
    match e {
        VaultError::Denied(Denial::Disabled, _) => "KeyVaultKeyNotEnabled",
        VaultError::Denied(Denial::Deleted, _) => "KeyNotFound",
        VaultError::Denied(Denial::NoPermission | Denial::Firewall, _) => "KeyVaultAccessForbidden",
        VaultError::Denied(Denial::Expired, _) => "KeyExpired",
        VaultError::Transient { .. } => "VaultUnreachable",
        VaultError::Auth(_) => "IdentityNotProven",
        VaultError::Corrupt(_) => "Damaged",
        VaultError::Rejected { code, .. } => code,
    }
}

fn code_of_kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Denied => "KeyDenied",
        ErrorKind::Unreachable => "VaultUnreachable",
        ErrorKind::Busy | ErrorKind::Conflict => "InUse",
        ErrorKind::NotFound => "NotFound",
        ErrorKind::PermissionDenied => "PermissionDenied",
        ErrorKind::ReadOnly => "ReadOnly",
        ErrorKind::NoSpace => "NoSpace",
        ErrorKind::Io => "IoError",
        ErrorKind::Damaged | ErrorKind::WrongKey => "Damaged",
        ErrorKind::Revoked => "Revoked",
        _ => "Failed",
    }
}

fn trouble(now: i64, kid: Option<&str>, code: &str, e: &Error) -> Trouble {
    let transient = matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::Busy | ErrorKind::Conflict);
    Trouble {
        since: now,
        time: now,
        kid: kid.map(str::to_owned),
        code: code.to_owned(),
        message: e.chain(),
        transient,
    }
}

/// Nobody has anything mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMounts;

impl MountedDisks for NoMounts {
    fn rewrap(&self, _: &str, _: &Path) -> Option<Result<()>> {
        None
    }
}

/// A mount could not rewrap its own container: noted in the registry and the report.
///
/// # Errors
/// `sets.db` cannot be changed.
pub fn note(access: &Access, report: &mut Report, header: &Header, path: &Path, e: &Error) -> Result<()> {
    let trouble = trouble(now(), Some(report.set.active.as_str()), code_of_kind(e.kind()), e);
    access.sets.container_trouble(header.uuid(), path, &trouble)?;
    for container in access.sets.find(header.uuid())?.into_iter().filter(|c| c.path == path) {
        report.left.push((container, trouble.clone(), e.kind()));
    }
    Ok(())
}

/// As [`finish`], by a mount, which has seen its own container only: what others noted of theirs stays until nothing is left.
///
/// # Errors
/// `sets.db` cannot be read or changed.
pub fn finish_own(access: &Access, report: &mut Report) -> Result<()> {
    if report.trouble.is_none() && report.left.is_empty() {
        let containers = access.sets.containers(Some(report.set.id))?;
        if !containers.iter().all(|c| report.set.is_done(&c.kids)) {
            return Ok(());
        }
    }
    finish(access, report)
}
