//! How the guard of a mount asks the vault: over the sets and the header of the live container.
//!
//! The data key that a probe unwraps is compared with the one in use through the header's own digest, and wiped: no second copy
//! of the key is kept for that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::guard::machine::Answer;
use crate::guard::{Outcome, Prober, Target};
use crate::secret::scrub_deep_stack;
use crate::set::access::Access;
use crate::set::container::MountedContainer;
use crate::set::probe::{Followed, reason};
use crate::vault::VaultError;
use crate::xts::{Engine, VolumeKey, XtsCipher};

/// See the module's header.
#[derive(Debug)]
pub struct SetProber {
    access: Arc<Access>,
    container: Arc<MountedContainer>,
    mountpoint: PathBuf,
}

impl SetProber {
    /// For one mount.
    #[must_use]
    pub const fn new(access: Arc<Access>, container: Arc<MountedContainer>, mountpoint: PathBuf) -> Self {
        Self { access, container, mountpoint }
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &MountedContainer {
        &self.container
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &std::path::Path {
        &self.mountpoint
    }

    fn followed(&self) -> Result<Followed, Outcome> {
        self.access
            .followed(&self.container.header())
            .map_err(|e| trouble(Answer::Transient { retry_after: None }, e.chain()))
    }

    fn ask(&self, deadline: Duration, resume: bool) -> Outcome {
        let followed = match self.followed() {
            Ok(followed) => followed,
            Err(outcome) => return outcome,
        };
        let outcome = self.ask_for(&followed, deadline, resume);
        if !matches!(outcome.answer, Answer::Denied(_)) {
            return outcome;
        }
        // A version that was rotated away may be switched off at any time: by then the header holds another one, which
        // another mount of the same container may have committed.
        if let Err(e) = self.container.reload() {
            log::warn!("{}", e.chain());
        }
        match self.followed() {
            Ok(now) if now.wrapped.kid != followed.wrapped.kid => self.ask_for(&now, deadline, resume),
            _ => outcome,
        }
    }

    fn ask_for(&self, followed: &Followed, deadline: Duration, resume: bool) -> Outcome {
        let why = if resume { "resume" } else { "probe" };
        let why = reason(why, &self.container, followed, &self.mountpoint);
        match self.access.ask(followed, &why, deadline) {
            Ok(key) if resume => self.cipher(followed, &key),
            Ok(key) if self.container.header().check_key(&key) => good(None),
            Ok(_) => trouble(Answer::Corrupt, "the vault gives another key than the one in use".to_owned()),
            Err(e) => refused(&e),
        }
    }

    fn cipher(&self, followed: &Followed, key: &VolumeKey) -> Outcome {
        let header = self.container.header();
        let checked = self.access.check_resumed(&header, followed, key);
        match checked.and_then(|()| XtsCipher::new(key, header.segment().sector_size, Engine::best())) {
            Ok(cipher) => good(Some(Box::new(cipher))),
            Err(e) if e.kind() == crate::error::ErrorKind::Damaged => trouble(Answer::Corrupt, e.chain()),
            Err(e) => trouble(Answer::Transient { retry_after: None }, e.chain()),
        }
    }
}

const fn good(cipher: Option<Box<XtsCipher>>) -> Outcome {
    Outcome { answer: Answer::Good, reason: String::new(), cipher }
}

const fn trouble(answer: Answer, reason: String) -> Outcome {
    Outcome { answer, reason, cipher: None }
}

fn refused(e: &VaultError) -> Outcome {
    let reason = e.to_string();
    let answer = match e {
        VaultError::Denied(denial, _) => Answer::Denied(*denial),
        VaultError::Transient { retry_after, .. } => Answer::Transient { retry_after: *retry_after },
        VaultError::Auth(_) => Answer::Auth,
        VaultError::Corrupt(_) => Answer::Corrupt,
        // What is configured here does not lead to the key: nobody has refused it.
        VaultError::Rejected { .. } => Answer::Transient { retry_after: None },
    };
    trouble(answer, reason)
}

impl Prober for SetProber {
    fn target(&self) -> Target {
        match self.followed() {
            Ok(followed) => Target {
                set: followed.set_name().to_owned(),
                kid: followed.wrapped.kid.to_string(),
                local: self.access.is_local(&followed.wrapped.kid),
            },
            // The next probe says what is wrong.
            Err(_) => Target { set: String::new(), kid: String::new(), local: false },
        }
    }

    fn probe(&self, deadline: Duration, resume: bool) -> Outcome {
        let outcome = self.ask(deadline, resume);
        // The way through the vault leaves copies of the key behind.
        scrub_deep_stack();
        outcome
    }

    fn generation(&self) -> Option<u64> {
        self.access.vault.policy_generation().ok()
    }

    fn expires(&self, deadline: Duration) -> Option<i64> {
        let followed = self.followed().ok()?;
        let why = reason("expiry", &self.container, &followed, &self.mountpoint);
        let at = self.access.expiry(&followed, &why, deadline).ok()??;
        Some(at - jiff::Timestamp::now().as_second())
    }
}
