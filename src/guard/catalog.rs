//! What is said of each event, to whom, and under which message id of the journal.
//!
//! The ids never change: rules and alarms of other people's name them. docs/EVENTS.md is the same for readers; a test
//! compares the two.
//!
//! Must never see: anything that happens.

use uuid::Uuid;

use super::event::EventKind;
use super::tell::Urgency;
use crate::journal::Priority;

/// What is said of one kind of event.
#[derive(Debug)]
pub struct Entry {
    /// Its stable word.
    pub name: &'static str,
    /// MESSAGE_ID.
    pub id: Uuid,
    /// PRIORITY.
    pub priority: Priority,
    /// Whether people are told (desktop, wall), and how loudly.
    pub told: Option<Urgency>,
    /// Whether hooks run.
    pub hooks: bool,
    /// For readers.
    pub meaning: &'static str,
}

const fn entry(name: &'static str, id: u128, priority: Priority, meaning: &'static str) -> Entry {
    Entry { name, id: Uuid::from_u128(id), priority, told: None, hooks: true, meaning }
}

impl Entry {
    const fn told(mut self, urgency: Urgency) -> Self {
        self.told = Some(urgency);
        self
    }

    const fn without_hooks(mut self) -> Self {
        self.hooks = false;
        self
    }
}

/// The vault gives trouble.
pub static DEGRADED: Entry = entry(
    "degraded",
    0xbd3d_5eea_448e_4cb1_a8e4_fa4d_07ff_3386,
    Priority::Warning,
    "the vault gives trouble; I/O goes on while the grace lasts",
)
.told(Urgency::Normal);
/// It is over.
pub static RECOVERED: Entry = entry(
    "recovered",
    0x8ea2_68ff_4ed7_4829_8066_8323_16fc_1a94,
    Priority::Notice,
    "the trouble is over, nothing had been stopped",
)
.told(Urgency::Normal);
/// It lasts.
pub static WARNED: Entry = entry(
    "warned",
    0x3589_3f9b_5a9e_4357_b2b0_a15c_d3a5_20d2,
    Priority::Error,
    "half, four fifths, nearly all of the grace is gone",
)
.told(Urgency::Critical);
/// The key is about to.
pub static EXPIRING: Entry = entry(
    "expiring",
    0xf528_9d93_8139_40c5_924d_f495_8da3_0f80,
    Priority::Warning,
    "the key version expires soon, or has expired: rotate it",
)
.told(Urgency::Normal);
/// I/O has ended.
pub static FENCED: Entry = entry(
    "fenced",
    0x7a35_3b3c_7a66_48e9_90c7_3ebf_9e2e_a067,
    Priority::Critical,
    "the key is revoked, or the grace is over: I/O has ended, the key is gone from memory",
)
.told(Urgency::Critical);
/// It goes on.
pub static RESUMED: Entry = entry(
    "resumed",
    0xcaa9_fa3c_5a57_4ffb_87fa_b886_57dd_416f,
    Priority::Notice,
    "the key may be used again: I/O goes on",
)
.told(Urgency::Normal);
/// Rewrapped.
pub static KEY_CHANGED: Entry = entry(
    "key-changed",
    0x78bc_acd7_aeaf_42e2_b3d2_a149_43b9_3520,
    Priority::Info,
    "the disk's key is wrapped by another key version now",
);
/// Not heard of by the guard: what was done to a guest.
pub static GUEST_STOPPED: Entry = entry(
    "guest-stopped",
    0x9dc6_75ae_2f3f_4acb_96fd_e2fc_4e29_1350,
    Priority::Notice,
    "a guest's processors were stopped, because its disk was about to be",
)
.without_hooks();
/// The power button.
pub static GUEST_POWERDOWN: Entry = entry(
    "guest-powerdown",
    0xcd82_fd98_6269_49d8_8cdc_a03f_c00c_3296,
    Priority::Notice,
    "a guest was asked to shut down, inside the shutdown window",
)
.without_hooks();
/// QEMU ended.
pub static GUEST_QUIT: Entry = entry(
    "guest-quit",
    0xa08c_6a86_feeb_4f7f_9e84_a7f2_41ba_ad69,
    Priority::Notice,
    "a guest was ended, because its disk is revoked",
)
.without_hooks();
/// Goes on.
pub static GUEST_CONTINUED: Entry = entry(
    "guest-continued",
    0x65a2_60ed_19ae_4fc0_962f_7f88_e15f_58b0,
    Priority::Notice,
    "a guest that had been stopped runs again",
)
.without_hooks();
/// Out of reach.
pub static GUEST_SILENT: Entry = entry(
    "guest-silent",
    0x2217_6299_4558_4472_9951_129f_f050_41f1,
    Priority::Error,
    "a guest did not do what it was told; its I/O has ended all the same",
)
.without_hooks();
/// A QEMU without a monitor.
pub static GUEST_UNKNOWN: Entry = entry(
    "guest-unknown",
    0xa5e2_7270_b970_45b0_9e7e_993e_a282_7d74,
    Priority::Warning,
    "a QEMU has the disk open, but no guest add told its monitor: it runs on and meets errors",
)
.without_hooks();

/// Every entry, in the order of docs/EVENTS.md.
pub static ALL: [&Entry; 13] = [
    &FENCED,
    &RESUMED,
    &DEGRADED,
    &WARNED,
    &RECOVERED,
    &EXPIRING,
    &KEY_CHANGED,
    &GUEST_STOPPED,
    &GUEST_POWERDOWN,
    &GUEST_QUIT,
    &GUEST_CONTINUED,
    &GUEST_SILENT,
    &GUEST_UNKNOWN,
];

/// The entry of what a guard reports.
#[must_use]
pub fn of(kind: &EventKind) -> &'static Entry {
    match kind {
        EventKind::Degraded { .. } => &DEGRADED,
        EventKind::Recovered { .. } => &RECOVERED,
        EventKind::Warned { .. } => &WARNED,
        EventKind::Expiring { .. } => &EXPIRING,
        EventKind::Fenced { .. } => &FENCED,
        EventKind::Resumed { .. } => &RESUMED,
        EventKind::KeyChanged => &KEY_CHANGED,
    }
}
