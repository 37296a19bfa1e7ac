//! Rotation of keys: by hand, and as their policy says.
//!
//! Must never see: disks, sets.
//!
//! Invariants:
//! 1. What is due is decided on the rows twice: before the new key is made, and in the transaction that stores it. So two
//!    processes at once make one version.
//! 2. A key whose latest version is disabled is not rotated by itself: somebody has stopped it.

use rusqlite::params;

use super::authz::Permission;
use super::keys::shown;
use super::model::{KeyAttributes, NewKey};
use super::policy::{PolicyAction, RotationPolicy, Trigger};
use super::refusal::Fail;
use super::rows::Version;
use super::rsa::{PrivateKey, RsaBits};
use super::work::{Task, Work};
use super::{LocalVault, now};
use crate::envelope::KeyRef;
use crate::vault::{Call, KeyInfo, VaultError};

impl LocalVault {
    /// Makes the next version: same size, operations and tags; it expires as the policy says.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn rotate_key(&self, name: &str, call: &Call) -> Result<KeyInfo, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task =
            Task { operation: "KeyRotate", permission: Permission::Rotate, path: &path, action: "rotate" };
        self.in_two_steps(
            task,
            call,
            |work| work.find_for_admin(&latest(name)),
            next_key,
            |work, row, key| work.add_next(&row, &key),
        )
    }

    /// The policy of a key; the default one where none was set.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn rotation_policy(&self, name: &str, call: &Call) -> Result<RotationPolicy, Fail> {
        let path = format!("/keys/{}", shown(name));
        self.audited(read_policy(&path), call, |work| {
            work.require_either(Some(name), Permission::Get)?;
            let row = work.find_for_admin_allowed(name)?;
            work.policy(&row)
        })
    }

    /// Gives a key a policy.
    ///
    /// # Errors
    /// 400 `BadParameter` (a rule is broken), 403, 404 `KeyNotFound`; broken.
    pub fn set_rotation_policy(
        &self,
        name: &str,
        policy: &RotationPolicy,
        call: &Call,
    ) -> Result<RotationPolicy, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task = Task {
            operation: "KeyRotationPolicySet",
            permission: Permission::SetRotationPolicy,
            path: &path,
            action: "rotationpolicy",
        };
        self.audited(task, call, |work| {
            work.require_either(Some(name), Permission::Update)?;
            work.check_name(name)?;
            let mut policy = policy.clone().checked().map_err(|e| {
                work.refuse(|scene| {
                    scene.bad_parameter(e.to_string(), "see wrapdisk key rotation-policy update --help")
                })
            })?;
            let row = work.find_for_admin_allowed(name)?;
            let before = work.policy(&row)?;
            policy.created = Some(before.created.unwrap_or_else(now));
            policy.updated = Some(now());
            work.change = Some(format!("rotation policy: {}", policy.to_json()));
            work.tx.execute(
                "UPDATE key SET policy = ?1, policy_created = ?2, policy_updated = ?3 WHERE id = ?4",
                params![policy.to_json().to_string(), policy.created, policy.updated, row.key.to_string()],
            )?;
            work.bump_generation()?;
            Ok(policy)
        })
    }

    /// Carries out what the policies say is due now: makes versions, and says once of each version that it will expire.
    /// Cheap when nothing is due. The new versions come back. One key's trouble does not keep the others from theirs.
    ///
    /// # Errors
    /// The first trouble, when everything has been tried.
    pub fn rotate_due(&self, call: &Call) -> Result<Vec<KeyInfo>, Fail> {
        let (mut made, mut trouble) = (Vec::new(), None);
        let mut tell = |name: &str, e: Fail| {
            let e = VaultError::from(e);
            log::warn!("key {name}: what its rotation policy says could not be done: {e}");
            trouble.get_or_insert(Fail::Broken(e));
        };
        for (name, action) in self.due(call)? {
            match action {
                PolicyAction::Rotate => match self.rotate_if_due(&name, call) {
                    Ok(new) => made.extend(new),
                    Err(e) => tell(&name, e),
                },
                PolicyAction::Notify => self.notify_if_due(&name, call).unwrap_or_else(|e| tell(&name, e)),
            }
        }
        trouble.map_or(Ok(made), Err)
    }

    /// When a key's policy makes its next version (Unix seconds); `None`: never by itself. Dates only, so not audited: who
    /// watches a mount asks every second.
    ///
    /// # Errors
    /// 404 `KeyNotFound`; broken.
    pub fn next_rotation(&self, name: &str, call: &Call) -> Result<Option<i64>, Fail> {
        let path = format!("/keys/{}", shown(name));
        self.peek(read_policy(&path), call, |work| {
            work.require_either(Some(name), Permission::Get)?;
            let row = work.find_for_admin_allowed(name)?;
            let policy = work.policy(&row)?;
            let due = policy.trigger(PolicyAction::Rotate).and_then(|t| t.due(row.created, row.expires));
            Ok(due.filter(|_| row.enabled))
        })
    }

    /// Which keys have something to be done.
    fn due(&self, call: &Call) -> Result<Vec<(String, PolicyAction)>, Fail> {
        let task = Task { operation: "KeyList", permission: Permission::Rotate, path: "/keys", action: "" };
        self.peek(task, call, |work| {
            let mut due = Vec::new();
            for row in work.latest_with_times()? {
                let policy = work.policy(&row)?;
                let actions = [PolicyAction::Rotate, PolicyAction::Notify];
                let of_row = actions.into_iter().filter(|action| is_due(&row, &policy, *action));
                due.extend(of_row.map(|action| (row.name.clone(), action)));
            }
            Ok(due)
        })
    }

    fn rotate_if_due(&self, name: &str, call: &Call) -> Result<Option<KeyInfo>, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task = Task {
            operation: "KeyRotateIfDue",
            permission: Permission::Rotate,
            path: &path,
            action: "rotate",
        };
        self.in_two_steps(
            task,
            call,
            |work| work.due_version(name, PolicyAction::Rotate),
            |row| row.as_ref().map(next_key).transpose(),
            |work, row, key| match (row, key) {
                (Some(row), Some(key)) => work.add_next(&row, &key).map(Some),
                _ => Ok(None), // another process was faster
            },
        )
    }

    fn notify_if_due(&self, name: &str, call: &Call) -> Result<(), Fail> {
        let path = format!("/keys/{}", shown(name));
        let task =
            Task { operation: "KeyNearExpiry", permission: Permission::Rotate, path: &path, action: "" };
        let said = self.audited(task, call, |work| {
            let Some(row) = work.due_version(name, PolicyAction::Notify)? else { return Ok(None) };
            let kid = row.info(work)?.kid;
            let when = row.expires.and_then(|t| jiff::Timestamp::from_second(t).ok());
            let when = when.map_or("soon, as its policy has it".to_owned(), |t| format!("at {t}"));
            work.change = Some(format!("notice: the version expires {when}"));
            work.tx.execute("UPDATE key_version SET notified = 1 WHERE version = ?1", [&row.version])?;
            Ok(Some(format!("{kid} expires {when}: make the next version with wrapdisk key rotate {name}")))
        })?;
        if let Some(said) = said {
            log::warn!("{said}");
        }
        Ok(())
    }
}

fn latest(name: &str) -> KeyRef {
    KeyRef { name: name.to_owned(), version: None }
}

fn next_key(row: &Version) -> Result<PrivateKey, Fail> {
    let bits = RsaBits::try_from(row.bits).map_err(|e| row.damaged("bits", e))?;
    Ok(PrivateKey::generate(bits, row.exponent()?)?)
}

fn is_due(row: &Version, policy: &RotationPolicy, action: PolicyAction) -> bool {
    let due = |trigger: &Trigger| trigger.is_due(row.created, row.expires, now());
    row.enabled
        && policy.trigger(action).is_some_and(due)
        && !(action == PolicyAction::Notify && row.notified)
}

const fn read_policy(path: &str) -> Task<'_> {
    Task {
        operation: "KeyRotationPolicyGet",
        permission: Permission::GetRotationPolicy,
        path,
        action: "rotationpolicy",
    }
}

impl Work<'_> {
    /// Either the operation's own permission or the more general one that Azure takes as well.
    pub(super) fn require_either(&mut self, name: Option<&str>, other: Permission) -> Result<(), Fail> {
        self.allowed = self.caller.may(self.tx, other, name)?;
        if self.allowed { Ok(()) } else { self.require(name) }
    }

    fn find_for_admin_allowed(&mut self, name: &str) -> Result<Version, Fail> {
        self.check_name(name)?;
        self.find(name, None)?.ok_or_else(|| self.refuse(|scene| scene.key_not_found(name)))
    }

    /// The latest version, if this is due for it.
    fn due_version(&mut self, name: &str, action: PolicyAction) -> Result<Option<Version>, Fail> {
        self.require(Some(name))?;
        let Some(row) = self.find(name, None)? else { return Ok(None) };
        let policy = self.policy(&row)?;
        Ok(Some(row).filter(|row| is_due(row, &policy, action)))
    }

    /// The policy of a row's key.
    pub(super) fn policy(&self, row: &Version) -> Result<RotationPolicy, Fail> {
        let Some(text) = &row.policy else { return Ok(RotationPolicy::default()) };
        RotationPolicy::from_json(text.as_bytes()).map_err(|e| row.damaged("policy", e))
    }

    fn add_next(&mut self, row: &Version, key: &PrivateKey) -> Result<KeyInfo, Fail> {
        let expiry = self.policy(row)?.expiry;
        let new = NewKey {
            attributes: KeyAttributes {
                enabled: true,
                not_before: None,
                expires: expiry.and_then(|period| period.after(now())),
            },
            operations: Some(row.operations()?),
            tags: row.tags()?,
            ..NewKey::default()
        };
        self.add_version(&row.name, key, &new)
    }
}
