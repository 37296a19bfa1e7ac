//! A mount's responses without its guard: what would be reported is said by the test.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wrapdisk::guard::guests::Guests;
use wrapdisk::guard::{Cause, EventKind, GuardEvent, Place, Responses, Why};
use wrapdisk::journal::Journal;
use wrapdisk::revocation::OnRevoke;
use wrapdisk::vault::Denial;

/// Responses of a mount in this folder, whose presented file is `disk.img` in it and whose journal is `journal`.
pub(crate) fn responses(dir: &Path, guests: &Arc<Guests>, journal: Option<Journal>) -> Responses {
    let place = Place {
        disk: dir.join("vm.wd"),
        uuid: "0b7f1f4e-0000-4000-8000-000000000001".to_owned(),
        set: "prod".to_owned(),
        mountpoint: dir.to_owned(),
        file: dir.join("disk.img"),
        config: dir.join("config"),
    };
    Responses::start(place, Arc::clone(guests), journal).unwrap()
}

pub(crate) fn event(dir: &Path, kind: EventKind, on_revoke: OnRevoke) -> GuardEvent {
    GuardEvent {
        at: 1_795_000_000,
        kind,
        disk: "0b7f1f4e-0000-4000-8000-000000000001".to_owned(),
        set: "prod".to_owned(),
        kid: "https://v.vault.localhost/keys/k/1".to_owned(),
        mountpoint: dir.to_owned(),
        reason: "the key is disabled\nby its owner".to_owned(),
        on_revoke,
    }
}

pub(crate) const FENCED: EventKind = EventKind::Fenced { why: Why::Denied(Denial::Disabled) };
pub(crate) const RESUMED: EventKind = EventKind::Resumed { after: Duration::from_secs(3) };

/// One of each.
pub(crate) fn every_kind() -> Vec<EventKind> {
    let hour = Duration::from_secs(3600);
    vec![
        FENCED,
        RESUMED,
        EventKind::Degraded { cause: Cause::Outage },
        EventKind::Warned { cause: Cause::Auth, percent: 80, left: hour },
        EventKind::Recovered { after: hour },
        EventKind::Expiring { days: 3 },
        EventKind::KeyChanged,
    ]
}
