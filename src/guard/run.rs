//! The guard's thread: sleeps until something is due, tells the machine, does what it says.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::clock::{boot_time, slept, wall};
use super::event::{EventKind, GuardEvent, Why};
use super::fence::Fence;
use super::machine::{Action, Answer, Event, Machine, Moment, State};
use super::prober::{Outcome, Prober, Target};
use super::status::GuardStatus;
use super::{CallFor, Shared, lock};
use crate::revocation::{OnRevoke, Policy};
use crate::xts::XtsCipher;

/// How often the embedded vault is looked at for changes (RULINGS 24).
const LOCAL_WATCH: Duration = Duration::from_secs(1);

/// Longest sleep, so that a machine that slept is noticed soon after it woke.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// How long the fence waits for guests that are only stopped, which takes milliseconds.
const STOP: Duration = Duration::from_millis(500);

/// How often the key's own end is asked for; the first time a while after the mount, which has enough to do.
const EXPIRY_EVERY: Duration = Duration::from_secs(3600);
const EXPIRY_FIRST: Duration = Duration::from_secs(300);

pub(super) struct Runner {
    shared: Arc<Shared>,
    prober: Arc<dyn Prober>,
    calls: Sender<CallFor>,
    policy: Policy,
    uuid: String,
    mountpoint: PathBuf,
    machine: Machine,
    target: Target,
    /// What the vault said last.
    reason: String,
    /// Of the last good answer, until the gate is opened with it.
    cipher: Option<Box<XtsCipher>>,
    generation: Option<u64>,
    /// Of a drill, when it was looked at last.
    simulated: Option<Answer>,
    slept: Duration,
    expiry_due: Moment,
    probes: u64,
    deadman: Deadman,
}

/// Closes the gate when the thread ends in a way that nobody meant.
struct Deadman {
    fence: Arc<Fence>,
    calls: Sender<CallFor>,
    /// What is told then.
    last: GuardEvent,
    relieved: bool,
}

impl Drop for Deadman {
    fn drop(&mut self) {
        if !self.relieved && self.fence.fall() {
            let mut event = self.last.clone();
            event.at = jiff::Timestamp::now().as_second();
            event.on_revoke = self.fence.on_revoke();
            let _ = self.calls.send(CallFor::Fenced(event));
        }
        self.fence.end();
    }
}

impl Runner {
    pub(super) fn new(
        shared: Arc<Shared>,
        fence: Arc<Fence>,
        prober: Arc<dyn Prober>,
        calls: Sender<CallFor>,
        (policy, uuid, mountpoint): (Policy, String, PathBuf),
    ) -> Self {
        let target = prober.target();
        let machine = Machine::new(policy, target.local, boot_time(), lot());
        let last = GuardEvent {
            at: 0,
            kind: EventKind::Fenced { why: Why::Unguarded },
            disk: uuid.clone(),
            set: target.set.clone(),
            kid: target.kid.clone(),
            mountpoint: mountpoint.clone(),
            on_revoke: fence.on_revoke(),
            reason: "the guard has died, which is a defect; unmount the disk and mount it again".to_owned(),
        };
        let deadman = Deadman { fence, calls: calls.clone(), last, relieved: false };
        let mut runner = Self {
            generation: prober.generation(),
            shared,
            prober,
            calls,
            policy,
            uuid,
            mountpoint,
            machine,
            target,
            reason: String::new(),
            cipher: None,
            simulated: None,
            slept: slept(),
            expiry_due: boot_time() + EXPIRY_FIRST,
            probes: 0,
            deadman,
        };
        runner.lend();
        runner.show();
        runner
    }

    fn fence(&self) -> &Fence {
        &self.deadman.fence
    }

    pub(super) fn run(mut self) {
        while self.machine.state() != State::Ended {
            let due = self.machine.wake().saturating_sub(boot_time());
            let watch = if self.target.local { LOCAL_WATCH } else { LONGEST_SLEEP };
            let wishes = self.shared.wait(due.min(watch));
            if slept().saturating_sub(self.slept) > self.policy.probe_interval {
                self.tell(Event::Woke);
            }
            self.slept = slept();
            if wishes.end {
                self.tell(Event::End);
                break;
            }
            if wishes.lapsed {
                self.tell(Event::Lapsed);
            }
            if wishes.header_changed {
                self.look_at_the_header();
                self.tell(Event::HeaderChanged);
            }
            if self.was_changed() || wishes.poke {
                self.tell(Event::Poke);
            }
            self.tell(Event::Tick);
            self.ask_for_the_end();
        }
    }

    /// Whether keys, grants or identities of the embedded vault were changed since the last look. One that cannot be read is
    /// news as well, once.
    fn was_changed(&mut self) -> bool {
        if !self.target.local {
            return false;
        }
        let generation = self.prober.generation();
        // A drill's answer is such a change, and so is its end.
        let simulated = self.shared.simulated();
        let changed = generation != self.generation || simulated != self.simulated;
        (self.generation, self.simulated) = (generation, simulated);
        changed
    }

    fn look_at_the_header(&mut self) {
        self.target = self.prober.target();
        self.machine.set_local(self.target.local);
        self.generation = self.prober.generation();
    }

    fn ask_for_the_end(&mut self) {
        let now = boot_time();
        if now >= self.expiry_due && self.machine.state() == State::Ready {
            self.expiry_due = now + EXPIRY_EVERY;
            if let Some(seconds) = self.prober.expires(self.machine.probe_deadline()) {
                self.tell(Event::Expires(seconds));
            }
        }
    }

    /// Tells the machine, and does what it says, and what it says to what came of that.
    fn tell(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            for action in self.machine.handle(boot_time(), event, lot()) {
                // A lease must not run out over what comes now.
                self.lend();
                next = self.act(action).or(next);
                self.lend();
                self.show();
            }
        }
        self.lend();
        self.show();
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Probe { deadline, resume } => Some(Event::Answer(self.probe(deadline, resume))),
            Action::Fence => {
                self.warn_guests();
                self.fence().fall();
                self.cipher = None;
                None
            }
            Action::Open => Some(Event::Opened(self.open())),
            Action::Report(kind) => {
                self.report(kind);
                None
            }
            Action::End => {
                self.deadman.relieved = true;
                None
            }
        }
    }

    fn probe(&mut self, deadline: Duration, resume: bool) -> Answer {
        self.probes += 1;
        self.look_at_the_target();
        let simulated = self.shared.simulated();
        let outcome = match simulated {
            Some(answer) => {
                Outcome { answer, reason: "a drill: the vault was not asked".to_owned(), cipher: None }
            }
            None => self.prober.probe(deadline, resume),
        };
        self.reason = outcome.reason;
        self.cipher = outcome.cipher;
        outcome.answer
    }

    /// A set may have been given another name, or be elsewhere now.
    fn look_at_the_target(&mut self) {
        self.target = self.prober.target();
        self.machine.set_local(self.target.local);
    }

    fn open(&mut self) -> bool {
        let Some(cipher) = self.cipher.take() else { return false };
        // Lent for as long as a good answer is worth, before anybody can come in.
        let good = self.policy.probe_interval * 2;
        self.fence().lend(Some(good));
        self.fence().disk().resume(*cipher)
    }

    /// Guests may power down inside the window, or are stopped, which is waited for only where they go on later.
    fn warn_guests(&self) {
        let ends = self.fence().on_revoke() == OnRevoke::Shutdown;
        if !ends && !self.fence().has_guests() {
            return;
        }
        let window = if ends { self.policy.shutdown_window } else { Duration::ZERO };
        // One that goes on later must be stopped by now, or it meets errors; one that will be ended need not be.
        let patience = if ends { window } else { STOP.min(self.policy.probe_interval / 20) };
        let (done, wait) = channel();
        let sent = self.calls.send(CallFor::BeforeFence(window, done)).is_ok();
        if sent && !patience.is_zero() {
            let _ = wait.recv_timeout(patience);
        }
    }

    fn report(&self, kind: EventKind) {
        let event = GuardEvent {
            at: jiff::Timestamp::now().as_second(),
            kind,
            disk: self.uuid.clone(),
            set: self.target.set.clone(),
            kid: self.target.kid.clone(),
            mountpoint: self.mountpoint.clone(),
            on_revoke: self.fence().on_revoke(),
            reason: self.reason.clone(),
        };
        let call = match kind {
            EventKind::Fenced { .. } => CallFor::Fenced(event),
            EventKind::Resumed { .. } => CallFor::Resumed(event),
            _ => CallFor::Changed(event),
        };
        let _ = self.calls.send(call);
    }

    /// Renews the lease on the key to what the machine says.
    fn lend(&self) {
        if self.machine.state().serves() {
            let left = self.machine.lease().map(|at| at.saturating_sub(boot_time()));
            self.fence().lend(left);
        }
    }

    fn show(&mut self) {
        let machine = &self.machine;
        let (cause, why) = match machine.state() {
            State::Degraded(cause) => (Some(cause), None),
            State::Revoked(why) | State::Resuming(why) => (None, Some(why)),
            State::Ready | State::Ended => (None, None),
        };
        let probed = (self.probes > 0).then(|| wall(machine.last_probe()));
        let status = GuardStatus {
            state: machine.state().name().to_owned(),
            cause,
            why: why.as_ref().map(Why::name).map(str::to_owned),
            reason: if machine.state() == State::Ready { String::new() } else { self.reason.clone() },
            since: wall(machine.since()),
            last_probe: probed,
            next_probe: (machine.next_probe() != Moment::MAX).then(|| wall(machine.next_probe())),
            last_good: wall(machine.last_good()),
            grace_left: machine.fence_at().map(|at| at.saturating_sub(boot_time()).as_secs()),
            kid: self.target.kid.clone(),
            set: self.target.set.clone(),
            on_revoke: self.fence().on_revoke(),
            policy: self.policy,
            probes: self.probes,
            fences: self.fence().fences(),
            waiting: 0,
        };
        *lock(&self.shared.status) = Some(status);
    }
}

/// Between 0 and 1. Not of the quality of a key: it only keeps mounts from asking all at once.
fn lot() -> f64 {
    let mut bytes = [0; 4];
    let _ = crate::secret::random(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
