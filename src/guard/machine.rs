//! The guard's decisions: a state machine that is told what happened and when, and says what to do. It reads no clock, draws no
//! lots and does nothing itself, so that tests can take it through every event in every state and a million histories.
//!
//! P is the policy's probe interval. Every time here is short against it: a probe starts at most 0.7 P after the last one
//! began, may take D, is confirmed after C by another that may take D. So I/O ends at most 1.25 P after the vault could have
//! said no for the first time; 2 P is promised.
//!
//! Invariants:
//! 1. The gate is closed only after a denial of a vault of this machine, a confirmed one of another, a denial that could not
//!    be confirmed within P, or a grace that ran out.
//! 2. [`Machine::lease`] never lies behind the moment at which this machine would close the gate by itself.
//! 3. While it is not ended, another probe is always due.

use std::time::Duration;

use super::event::{Cause, EventKind, Why};
use crate::revocation::{Grace, Policy};
use crate::vault::Denial;

/// Time since some start, of a clock that goes on while the machine sleeps.
pub type Moment = Duration;

/// Parts of the grace after which people are warned, in percent.
const WARNINGS: [u8; 3] = [50, 80, 95];

/// Days before the end of a key's validity from which on people are told.
const EXPIRES_SOON: i64 = 30;

/// What the vault said to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The key that is in use.
    Good,
    /// No.
    Denied(Denial),
    /// It could not be asked, or could not answer.
    Transient {
        /// When to ask again, if it said so.
        retry_after: Option<Duration>,
    },
    /// It does not believe who asks.
    Auth,
    /// Another key, or that it cannot read the wrapped one.
    Corrupt,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The machine slept for longer than P: whatever ran out meanwhile, the vault is asked first.
    Woke,
    /// Of the probe that was ordered last.
    Answer(Answer),
    /// Whether the key of the last answer passed digest, MAC and fingerprint, and the gate is open.
    Opened(bool),
    /// Keys, grants or sets were changed.
    Poke,
    /// The header holds another key version.
    HeaderChanged,
    /// Seconds until the key version expires; negative: since.
    Expires(i64),
    /// The lease ran out and the gate is closed already.
    Lapsed,
    /// The mount ends.
    End,
}

/// Where the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Serves.
    Ready,
    /// Serves, but.
    Degraded(Cause),
    /// The gate is closed, no key is in memory.
    Revoked(Why),
    /// The vault has given the key back, the gate is still closed.
    Resuming(Why),
    /// The mount is gone.
    Ended,
}

impl State {
    /// Is the gate open?
    #[must_use]
    pub const fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded(_))
    }

    /// A stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded(_) => "degraded",
            Self::Revoked(_) => "revoked",
            Self::Resuming(_) => "resuming",
            Self::Ended => "ended",
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the vault, and tell [`Event::Answer`] within the deadline.
    Probe {
        /// D.
        deadline: Duration,
        /// Keep the key of a good answer for [`Action::Open`].
        resume: bool,
    },
    /// Close the gate and wipe the key.
    Fence,
    /// Check the key of the last answer, open the gate with it, and tell [`Event::Opened`].
    Open,
    /// Tell whom it concerns.
    Report(EventKind),
    /// Close the gate for good.
    End,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    /// The vault is of this machine: its first no is final.
    local: bool,
    state: State,
    since: Moment,
    /// When the vault last said yes.
    good: Moment,
    /// When it last used the key for us, whatever came of it.
    answered: Moment,
    /// When each cause came up first since `good`.
    first: [Option<Moment>; Cause::ALL.len()],
    denial: Denial,
    /// The last probe.
    began: Moment,
    /// A probe is on its way; whether its key is kept to resume with.
    asking: Option<bool>,
    next: Moment,
    failures: u32,
    warned: u8,
    woke: bool,
    expiry_told: Option<i64>,
    stopped: Moment,
}

impl Machine {
    /// Of a disk whose key the vault has just given.
    #[must_use]
    pub fn new(policy: Policy, local: bool, now: Moment, jitter: f64) -> Self {
        let mut machine = Self {
            policy,
            local,
            state: State::Ready,
            since: now,
            good: now,
            answered: now,
            first: [None; Cause::ALL.len()],
            denial: Denial::Disabled,
            began: now,
            asking: None,
            next: now,
            failures: 0,
            warned: 0,
            woke: false,
            expiry_told: None,
            stopped: now,
        };
        machine.next = machine.usual_time(now, jitter);
        machine
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when it is in it.
    #[must_use]
    pub const fn since(&self) -> Moment {
        self.since
    }

    /// When the vault last said yes.
    #[must_use]
    pub const fn last_good(&self) -> Moment {
        self.good
    }

    /// When the last probe began.
    #[must_use]
    pub const fn last_probe(&self) -> Moment {
        self.began
    }

    /// When the next probe is due.
    #[must_use]
    pub const fn next_probe(&self) -> Moment {
        self.next
    }

    /// The pair (set, key) that is asked for is in this machine's vault or not: a set may move.
    pub const fn set_local(&mut self, local: bool) {
        self.local = local;
    }

    /// D.
    #[must_use]
    pub fn probe_deadline(&self) -> Duration {
        Duration::from_secs(5).min(self.policy.probe_interval.mul_f64(0.2))
    }

    /// C.
    #[must_use]
    pub fn confirm_after(&self) -> Duration {
        Duration::from_secs(2).min(self.policy.probe_interval.mul_f64(0.05))
    }

    /// When the gate is to be closed, unless something gets better.
    #[must_use]
    pub fn fence_at(&self) -> Option<Moment> {
        let State::Degraded(cause) = self.state else { return None };
        let (from, grace) = self.grace(cause)?;
        Some(from.saturating_add(grace))
    }

    /// From when on what is forgiven for how long.
    fn grace(&self, cause: Cause) -> Option<(Moment, Duration)> {
        let first = self.first[cause as usize].unwrap_or(self.good);
        match (cause, self.policy.outage_grace) {
            // What was promised is 2 P in all.
            (Cause::Suspect, _) => Some((first, self.policy.probe_interval)),
            (Cause::Auth, _) => Some((first, self.policy.auth_grace)),
            (Cause::Firewall, _) => Some((first, self.policy.firewall_grace)),
            (Cause::Outage, Grace::For(grace)) => Some((self.answered, grace)),
            // The vault did use the key for us: nobody is kept from anything by it.
            (Cause::Outage, Grace::Never) | (Cause::Corrupt, _) => None,
        }
    }

    /// Until when the gate may stay open although nothing is heard of this machine (RULINGS 21); `None`: for ever.
    #[must_use]
    pub fn lease(&self) -> Option<Moment> {
        // At least as long as a healthy guard needs between two answers.
        let alive = self.policy.probe_interval * 2;
        match (self.state, self.policy.outage_grace) {
            (State::Ready | State::Degraded(Cause::Corrupt), Grace::For(grace)) => {
                Some(self.answered.saturating_add(grace.max(alive)))
            }
            (State::Degraded(Cause::Suspect | Cause::Outage | Cause::Auth | Cause::Firewall), _) => {
                self.fence_at()
            }
            _ => None,
        }
    }

    /// When [`Event::Tick`] is wanted next.
    #[must_use]
    pub fn wake(&self) -> Moment {
        let probe = if self.asking.is_some() { Moment::MAX } else { self.next };
        if self.woke {
            return probe;
        }
        let warning = self.next_warning().map_or(Moment::MAX, |(_, at)| at);
        probe.min(self.fence_at().unwrap_or(Moment::MAX)).min(warning)
    }

    fn next_warning(&self) -> Option<(u8, Moment)> {
        let State::Degraded(cause) = self.state else { return None };
        let (from, grace) = self.grace(cause).filter(|_| cause != Cause::Suspect)?;
        let percent = WARNINGS.into_iter().find(|percent| *percent > self.warned)?;
        Some((percent, from.saturating_add(grace.mul_f64(f64::from(percent) / 100.0))))
    }

    /// What to do about `event`. `jitter` is a lot between 0 and 1.
    pub fn handle(&mut self, now: Moment, event: Event, jitter: f64) -> Vec<Action> {
        let mut todo = Vec::new();
        if self.state == State::Ended {
            return todo;
        }
        match event {
            Event::Tick => {}
            Event::Woke => {
                self.woke = self.state.serves();
                self.next = now;
            }
            Event::Poke | Event::HeaderChanged => {
                self.next = now;
                if event == Event::HeaderChanged {
                    todo.push(Action::Report(EventKind::KeyChanged));
                    self.expiry_told = None;
                }
            }
            Event::Answer(answer) => {
                // What comes too late finds the gate closed, by the lease if not by this machine, and no key kept.
                self.watch_the_grace(now, &mut todo);
                self.woke = false;
                let late = self.asking.take() == Some(false) && !self.state.serves();
                if !late {
                    self.heard(now, answer, jitter, &mut todo);
                }
            }
            Event::Opened(open) => self.opened(now, open, &mut todo),
            Event::Expires(seconds) => self.expires(seconds, &mut todo),
            Event::Lapsed => {
                self.watch_the_grace(now, &mut todo);
                self.fence(now, Why::Unguarded, &mut todo);
            }
            Event::End => {
                self.enter(now, State::Ended);
                return vec![Action::End];
            }
        }
        if self.state == State::Degraded(Cause::Suspect) {
            // A second no counts only when it comes after C.
            let first = self.first[Cause::Suspect as usize].unwrap_or(now);
            self.next = self.next.max(first.saturating_add(self.confirm_after()));
        }
        self.watch_the_grace(now, &mut todo);
        // While the key of the last answer is being tried there is nothing to ask.
        if self.asking.is_none() && now >= self.next && !matches!(self.state, State::Resuming(_)) {
            let resume = !self.state.serves();
            self.asking = Some(resume);
            self.began = now;
            self.next = self.usual_time(now, jitter);
            todo.push(Action::Probe { deadline: self.probe_deadline(), resume });
        }
        todo
    }

    fn heard(&mut self, now: Moment, answer: Answer, jitter: f64, todo: &mut Vec<Action>) {
        let retry = self.retry_time(now, answer, jitter);
        match (self.state, answer) {
            (State::Ready | State::Degraded(_), Answer::Good) => {
                if let State::Degraded(_) = self.state {
                    let begin = self.first.iter().flatten().min().copied().unwrap_or(self.since);
                    let after = now.saturating_sub(begin);
                    todo.push(Action::Report(EventKind::Recovered { after }));
                    self.enter(now, State::Ready);
                }
                self.all_is_well(now);
            }
            (State::Ready | State::Degraded(_), Answer::Denied(Denial::Firewall)) => {
                self.trouble(now, Cause::Firewall, todo);
            }
            (State::Ready | State::Degraded(_), Answer::Denied(denial)) => {
                if self.local || self.state == State::Degraded(Cause::Suspect) {
                    return self.fence(now, Why::Denied(denial), todo);
                }
                self.denial = denial;
                self.trouble(now, Cause::Suspect, todo);
                self.next = now.saturating_add(self.confirm_after());
                return;
            }
            (State::Ready | State::Degraded(_), Answer::Transient { .. }) => {
                self.trouble(now, Cause::Outage, todo);
            }
            (State::Ready | State::Degraded(_), Answer::Auth) => self.trouble(now, Cause::Auth, todo),
            (State::Ready | State::Degraded(_), Answer::Corrupt) => {
                self.answered = now;
                self.trouble(now, Cause::Corrupt, todo);
            }
            (State::Revoked(why) | State::Resuming(why), Answer::Good) => {
                self.enter(now, State::Resuming(why));
                todo.push(Action::Open);
            }
            (State::Revoked(_) | State::Resuming(_), Answer::Denied(denial)) => {
                self.enter(now, State::Revoked(Why::Denied(denial)));
            }
            (State::Revoked(why) | State::Resuming(why), _) => self.enter(now, State::Revoked(why)),
            (State::Ended, _) => {}
        }
        self.next = retry;
    }

    /// When to ask again after this answer.
    fn retry_time(&mut self, now: Moment, answer: Answer, jitter: f64) -> Moment {
        let retry_after = match answer {
            Answer::Good | Answer::Corrupt => {
                self.failures = 0;
                return self.usual_time(self.began, jitter).max(now);
            }
            Answer::Denied(denial) if denial != Denial::Firewall => {
                return self.usual_time(self.began, jitter).max(now);
            }
            Answer::Transient { retry_after } => retry_after,
            Answer::Auth | Answer::Denied(_) => None,
        };
        let interval = self.policy.probe_interval;
        let doubled = Duration::from_secs(1 << self.failures.min(12)).mul_f64(1.0 - 0.2 * jitter);
        self.failures += 1;
        // Never sooner than it was asked to, nor than it would have been asked anyway.
        let wait = doubled.min(interval.mul_f64(0.7)).max(retry_after.unwrap_or_default()).min(interval);
        now.saturating_add(wait)
    }

    /// 0.5 P to 0.7 P after `began`.
    fn usual_time(&self, began: Moment, jitter: f64) -> Moment {
        began.saturating_add(self.policy.probe_interval.mul_f64(0.5 + 0.2 * jitter.clamp(0.0, 1.0)))
    }

    fn all_is_well(&mut self, now: Moment) {
        self.good = now;
        self.answered = now;
        self.first = [None; Cause::ALL.len()];
        self.warned = 0;
    }

    /// A suspicion stays one until the vault says yes.
    fn trouble(&mut self, now: Moment, cause: Cause, todo: &mut Vec<Action>) {
        self.first[cause as usize].get_or_insert(now);
        let suspect = State::Degraded(Cause::Suspect);
        if self.state == suspect || self.state == State::Degraded(cause) {
            return;
        }
        self.enter(now, State::Degraded(cause));
        self.warned = 0;
        todo.push(Action::Report(EventKind::Degraded { cause }));
    }

    /// Closes the gate when a grace is over; says how much of it is left before.
    fn watch_the_grace(&mut self, now: Moment, todo: &mut Vec<Action>) {
        let State::Degraded(cause) = self.state else { return };
        if self.woke {
            return;
        }
        if self.fence_at().is_some_and(|at| now >= at) {
            let why = match cause {
                Cause::Suspect => Why::Unconfirmed(self.denial),
                _ => Why::Expired(cause),
            };
            return self.fence(now, why, todo);
        }
        let mut percent = None;
        while let Some((next, _)) = self.next_warning().filter(|(_, at)| now >= *at) {
            self.warned = next;
            percent = Some(next);
        }
        if let Some((percent, at)) = percent.zip(self.fence_at()) {
            let left = at.saturating_sub(now);
            todo.push(Action::Report(EventKind::Warned { cause, percent, left }));
        }
    }

    fn fence(&mut self, now: Moment, why: Why, todo: &mut Vec<Action>) {
        if !self.state.serves() {
            return;
        }
        self.enter(now, State::Revoked(why));
        self.stopped = now;
        self.woke = false;
        self.failures = 0;
        // The key may be back already.
        self.next = now.saturating_add(self.confirm_after());
        todo.push(Action::Fence);
        todo.push(Action::Report(EventKind::Fenced { why }));
    }

    fn opened(&mut self, now: Moment, open: bool, todo: &mut Vec<Action>) {
        let State::Resuming(why) = self.state else { return };
        if !open {
            return self.enter(now, State::Revoked(why));
        }
        self.enter(now, State::Ready);
        self.all_is_well(now);
        todo.push(Action::Report(EventKind::Resumed { after: now.saturating_sub(self.stopped) }));
    }

    fn expires(&mut self, seconds: i64, todo: &mut Vec<Action>) {
        let days = seconds.div_euclid(24 * 3600).max(-1);
        if days > EXPIRES_SOON || self.expiry_told == Some(days) {
            return;
        }
        self.expiry_told = Some(days);
        todo.push(Action::Report(EventKind::Expiring { days }));
    }

    fn enter(&mut self, now: Moment, state: State) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}
