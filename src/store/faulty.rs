//! A store that fails on purpose: the n-th operation of a kind, a machine that stops, a write that is torn, and what is
//! left on the platter after a crash.
//!
//! It lives in the product tree because tests of several files and modules (luks2 commits, volume, disk) need the same
//! one, armed while a disk is mounted; no product code constructs it, and it is hidden from the documentation.
//! Must never see: what the bytes mean.
//!
//! Invariants: an operation that is made to fail changes nothing (a torn one exactly its first bytes); with an empty
//! plan the store behaves as the one below.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::BackingStore;
use crate::error::{Error, Result};
use crate::units::{ByteLen, ByteOffset, Extent};

/// What the caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO: the medium failed.
    Eio,
    /// ENOSPC: the file system below is full.
    Enospc,
}

impl Fault {
    fn error(self, what: &str) -> Error {
        let errno = match self {
            Self::Eio => libc::EIO,
            Self::Enospc => libc::ENOSPC,
        };
        Error::io(what, std::io::Error::from_raw_os_error(errno)).on("faulty store")
    }
}

/// The kinds of operation that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `read_at`
    Read,
    /// `write_at`
    Write,
    /// `sync`
    Sync,
    /// `punch`
    Punch,
    /// `set_len`
    SetLen,
}

/// How a stopped machine looks to the program that still runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Every change and sync reports success and does nothing: the power went away, nobody is there to be told.
    Silent,
    /// Every change and sync fails with EIO: the device went away.
    Errors,
}

/// When to fail. Clones share the same plan, so that a test can arm it while the store is in use.
///
/// "The n-th" counts from 1, from the moment of arming.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    stopped: Option<Stop>,
    /// Operations asked for so far, by [`Op`].
    seen: [u64; 5],
}

#[derive(Debug)]
struct Rule {
    trigger: Trigger,
    /// Operations to go; fires at 1, stays at 1 when it repeats.
    countdown: u64,
    action: Action,
    repeats: bool,
}

#[derive(Clone, Copy, Debug)]
enum Trigger {
    One(Op),
    AnyChange,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Fail(Fault),
    StopAfter(Stop),
    Tear { keep: usize, stop: Stop },
}

/// What becomes of one operation.
enum Verdict {
    Pass,
    Fail(Fault),
    Ignore,
    Tear { keep: usize, stop: Stop },
}

impl Op {
    fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Punch | Self::SetLen)
    }
}

impl Trigger {
    fn matches(self, op: Op) -> bool {
        match self {
            Self::One(only) => only == op,
            Self::AnyChange => op.is_change(),
        }
    }
}

impl FaultPlan {
    /// The `nth` operation of kind `op` fails, once; nothing is written by it.
    pub fn fail_nth(&self, op: Op, nth: u64, fault: Fault) {
        self.add(Trigger::One(op), nth, Action::Fail(fault), false);
    }

    /// The `nth` operation of kind `op` and all later ones fail.
    pub fn fail_from(&self, op: Op, nth: u64, fault: Fault) {
        self.add(Trigger::One(op), nth, Action::Fail(fault), true);
    }

    /// The machine stops right after `n` more changes (writes, punches, length changes); with 0, now. A `sync` that
    /// comes after the last of them does not happen either.
    pub fn stop_after(&self, n: u64, stop: Stop) {
        if n == 0 {
            self.state().stopped = Some(stop);
        } else {
            self.add(Trigger::AnyChange, n, Action::StopAfter(stop), false);
        }
    }

    /// Of the `nth` write only the first `keep` bytes reach the store; then the machine stops.
    pub fn tear_write(&self, nth: u64, keep: usize, stop: Stop) {
        self.add(Trigger::One(Op::Write), nth, Action::Tear { keep, stop }, false);
    }

    /// Forgets every rule and lets a stopped machine go on. What was lost stays lost.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.stopped = None;
    }

    /// True once [`FaultPlan::stop_after`] or [`FaultPlan::tear_write`] came to pass: a test that walks through all crash
    /// points ends at the first run in which it did not.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.state().stopped.is_some()
    }

    /// Operations of kind `op` that were asked for so far, failed ones included.
    #[must_use]
    pub fn count(&self, op: Op) -> u64 {
        self.state().seen[op as usize]
    }

    fn add(&self, trigger: Trigger, nth: u64, action: Action, repeats: bool) {
        assert!(nth > 0, "operations are counted from 1");
        self.state().rules.push(Rule { trigger, countdown: nth, action, repeats });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, op: Op) -> Verdict {
        let mut state = self.state();
        state.seen[op as usize] += 1;
        if op != Op::Read {
            match state.stopped {
                Some(Stop::Silent) => return Verdict::Ignore,
                Some(Stop::Errors) => return Verdict::Fail(Fault::Eio),
                None => {}
            }
        }
        let Some(action) = state.fire(op) else { return Verdict::Pass };
        match action {
            Action::Fail(fault) => Verdict::Fail(fault),
            Action::StopAfter(stop) => {
                state.stopped = Some(stop);
                Verdict::Pass
            }
            Action::Tear { keep, stop } => {
                state.stopped = Some(stop);
                Verdict::Tear { keep, stop }
            }
        }
    }
}

impl State {
    /// Counts `op` against every rule; the oldest of those that fire decides.
    fn fire(&mut self, op: Op) -> Option<Action> {
        let mut fired = None;
        self.rules.retain_mut(|rule| {
            if !rule.trigger.matches(op) {
                return true;
            }
            if rule.countdown > 1 {
                rule.countdown -= 1;
                return true;
            }
            fired = fired.or(Some(rule.action));
            rule.repeats
        });
        fired
    }
}

/// The decorator.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    plan: FaultPlan,
    history: Option<Mutex<History>>,
}

/// What a crash would leave: what was synced, and what came after it, in order.
#[derive(Debug)]
struct History {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(ByteOffset, Vec<u8>),
    Punch(Extent),
    SetLen(ByteLen),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        let index = |n: u64| usize::try_from(n).expect("a test image fits in memory");
        match self {
            Self::Write(offset, data) => {
                let start = index(offset.get());
                if image.len() < start + data.len() {
                    image.resize(start + data.len(), 0);
                }
                image[start..start + data.len()].copy_from_slice(data);
            }
            Self::Punch(extent) => {
                let extent = extent.clamp_to(ByteLen::of(image));
                if !extent.is_empty() {
                    image[index(extent.start().get())..index(extent.end().get())].fill(0);
                }
            }
            Self::SetLen(len) => image.resize(index(len.get()), 0),
        }
    }
}

impl<S: BackingStore> FaultyStore<S> {
    /// Fails as `plan` says.
    pub fn new(inner: S, plan: FaultPlan) -> Self {
        Self { inner, plan, history: None }
    }

    /// Also remembers, in memory, what is durable and what is not, for [`FaultyStore::crash_image`]. What `inner` holds
    /// now counts as durable.
    ///
    /// # Errors
    /// `Io`, from reading all of `inner`.
    pub fn recording(inner: S, plan: FaultPlan) -> Result<Self> {
        let len = inner.len()?.to_usize().expect("a test image fits in memory");
        let mut durable = vec![0; len];
        inner.read_at(ByteOffset::ZERO, &mut durable)?;
        Ok(Self { inner, plan, history: Some(Mutex::new(History { durable, unsynced: Vec::new() })) })
    }

    /// The store below: what the medium holds if nothing unsynced is lost.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The plan, to arm it.
    #[must_use]
    pub fn plan(&self) -> &FaultPlan {
        &self.plan
    }

    /// How many changes a crash could lose now.
    ///
    /// # Panics
    /// When the store was not made by [`FaultyStore::recording`].
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.history().unsynced.len()
    }

    /// What a crash now would leave: everything synced, and of the changes since then those for which `survives` (their
    /// index, oldest first) says so. A real cache writes back in any order, so any subset can happen.
    ///
    /// # Panics
    /// When the store was not made by [`FaultyStore::recording`].
    pub fn crash_image(&self, mut survives: impl FnMut(usize) -> bool) -> Vec<u8> {
        let history = self.history();
        let mut image = history.durable.clone();
        for (index, change) in history.unsynced.iter().enumerate() {
            if survives(index) {
                change.apply(&mut image);
            }
        }
        image
    }

    fn history(&self) -> MutexGuard<'_, History> {
        let history = self.history.as_ref().expect("only a store made by `recording` has a history");
        history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, change: impl FnOnce() -> Change) {
        if self.history.is_some() {
            self.history().unsynced.push(change());
        }
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.inner.write_at(offset, data)?;
        self.remember(|| Change::Write(offset, data.to_vec()));
        Ok(())
    }
}

impl<S: BackingStore> BackingStore for FaultyStore<S> {
    fn len(&self) -> Result<ByteLen> {
        self.inner.len()
    }

    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self.plan.judge(Op::Read) {
            Verdict::Fail(fault) => Err(fault.error("read")),
            _ => self.inner.read_at(offset, buf),
        }
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        match self.plan.judge(Op::Write) {
            Verdict::Pass => self.write(offset, data),
            Verdict::Fail(fault) => Err(fault.error("write")),
            Verdict::Ignore => Ok(()),
            Verdict::Tear { keep, stop } => {
                self.write(offset, &data[..keep.min(data.len())])?;
                match stop {
                    Stop::Silent => Ok(()),
                    Stop::Errors => Err(Fault::Eio.error("write")),
                }
            }
        }
    }

    fn sync(&self) -> Result<()> {
        match self.plan.judge(Op::Sync) {
            Verdict::Fail(fault) => return Err(fault.error("sync")),
            Verdict::Ignore => return Ok(()),
            Verdict::Pass | Verdict::Tear { .. } => {}
        }
        if self.history.is_none() {
            return self.inner.sync();
        }
        // Under the lock: a write that returns meanwhile is not counted as synced.
        let mut history = self.history();
        self.inner.sync()?;
        let History { durable, unsynced } = &mut *history;
        unsynced.drain(..).for_each(|change| change.apply(durable));
        Ok(())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        match self.plan.judge(Op::SetLen) {
            Verdict::Fail(fault) => Err(fault.error("set the length")),
            Verdict::Ignore => Ok(()),
            Verdict::Pass | Verdict::Tear { .. } => {
                self.inner.set_len(len)?;
                self.remember(|| Change::SetLen(len));
                Ok(())
            }
        }
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        match self.plan.judge(Op::Punch) {
            Verdict::Fail(fault) => Err(fault.error("punch")),
            Verdict::Ignore => Ok(()),
            Verdict::Pass | Verdict::Tear { .. } => {
                self.inner.punch(extent)?;
                self.remember(|| Change::Punch(extent));
                Ok(())
            }
        }
    }

    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.inner.seek_data(from)
    }

    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.inner.seek_hole(from)
    }

    fn allocated(&self) -> Result<ByteLen> {
        self.inner.allocated()
    }
}
