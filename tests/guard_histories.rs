//! Does the guard keep its promises whatever happens, in any order? A simulated clock, vault, gate and guard thread (which may
//! hang) go through a million random histories with the real state machine; each is known by its seed.
//!
//! Checked in each: no I/O is served after the fence; no fence without a confirmed denial, a denial that could not be confirmed
//! within P, an expired grace or a lapsed lease; the key is in memory only while the gate is open; the gate closes within 1.25 P
//! of a revocation (2 P after an outage, the lease when the guard hangs); and I/O always comes back when the vault allows.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use wrapdisk::guard::machine::{Action, Answer, Event, Machine, Moment, State};
use wrapdisk::guard::{Cause, EventKind, Why};
use wrapdisk::revocation::{Grace, Policy, PolicyChange};
use wrapdisk::vault::Denial;

const HISTORIES: u64 = 1_000_000;
/// Turns of fortune in each.
const TURNS: u64 = 4;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// splitmix64
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn up_to(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.unit())
    }
}

/// What the vault would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vault {
    Allows,
    Denies(Denial),
    Away(Option<Duration>),
    Doubts,
    Firewall,
    Garbles,
}

impl Vault {
    const ALL: [Self; 8] = [
        Self::Allows,
        Self::Allows,
        Self::Denies(Denial::Disabled),
        Self::Denies(Denial::NoPermission),
        Self::Away(None),
        Self::Doubts,
        Self::Firewall,
        Self::Garbles,
    ];

    const fn answer(self) -> Answer {
        match self {
            Self::Allows => Answer::Good,
            Self::Denies(denial) => Answer::Denied(denial),
            Self::Away(retry_after) => Answer::Transient { retry_after },
            Self::Doubts => Answer::Auth,
            Self::Firewall => Answer::Denied(Denial::Firewall),
            Self::Garbles => Answer::Corrupt,
        }
    }
}

struct World {
    seed: u64,
    lots: Lots,
    policy: Policy,
    local: bool,
    now: Moment,
    machine: Machine,
    vault: Vault,
    /// Since when the vault says what it says.
    since: Moment,
    /// When anything but yes or no was heard last.
    trouble: Option<Moment>,
    /// The guard's thread hangs until then.
    stuck: Option<Moment>,
    /// It hung since the vault changed its mind.
    has_hung: bool,
    /// The gate: open until the lease ends.
    open: bool,
    lease: Option<Moment>,
    key_in_memory: bool,
    /// When the gate closed last.
    closed_at: Moment,
    /// Denials since the last yes.
    denials: Vec<Moment>,
    last_answer: Answer,
    /// The last probe was to keep its key.
    kept: bool,
    /// When each trouble began, since the last yes.
    began: [Option<Moment>; 5],
    used: Moment,
    fences: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut lots = Lots(seed);
        let interval = secs(lots.one_of(&[5, 60, 60, 600, 3600]));
        let hour = secs(3600);
        let graces = [
            Grace::For(Duration::ZERO),
            Grace::For(secs(7)),
            Grace::For(interval * 3),
            Grace::For(24 * hour),
            Grace::Never,
        ];
        let change = PolicyChange {
            probe_interval: Some(interval),
            outage_grace: Some(lots.one_of(&graces)),
            auth_grace: Some(lots.one_of(&[Duration::ZERO, interval, hour])),
            firewall_grace: Some(lots.one_of(&[Duration::ZERO, secs(900)])),
            ..PolicyChange::default()
        };
        let policy = Policy::default().with(&change).unwrap();
        let (local, now) = (lots.below(4) == 0, secs(lots.below(1 << 30)));
        let machine = Machine::new(policy, local, now, lots.unit());
        let lease = machine.lease();
        Self {
            seed,
            lots,
            policy,
            local,
            now,
            machine,
            vault: Vault::Allows,
            since: now,
            trouble: None,
            stuck: None,
            has_hung: false,
            open: true,
            lease,
            key_in_memory: true,
            closed_at: now,
            denials: vec![],
            last_answer: Answer::Good,
            kept: false,
            began: [None; 5],
            used: now,
            fences: 0,
        }
    }

    #[track_caller]
    fn check(&self, true_: bool, what: &str) {
        assert!(
            true_,
            "seed {}: {what}; at {:?} {:?}, vault {:?} since {:?}, {:#?}",
            self.seed, self.now, self.policy, self.vault, self.since, self.machine
        );
    }

    /// Does a request get through the gate?
    fn serves(&self) -> bool {
        self.open && self.lease.is_none_or(|end| self.now < end)
    }

    /// The watch over the lease is another thread than the guard's.
    fn watch(&mut self) -> bool {
        let lapsed = self.open && self.lease.is_some_and(|end| self.now >= end);
        if lapsed {
            self.close();
        }
        lapsed
    }

    fn close(&mut self) {
        self.open = false;
        self.key_in_memory = false;
        self.closed_at = self.now;
        self.fences += 1;
    }

    /// Tells the machine something and does what it says.
    fn tell(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let lot = self.lots.unit();
            // As the guard's thread does: it looks at the gate before it tells anything.
            let event = if self.watch_is_due() && event != Event::Lapsed {
                next = Some(event);
                Event::Lapsed
            } else {
                event
            };
            for action in self.machine.handle(self.now, event, lot) {
                match action {
                    Action::Probe { deadline, resume } => {
                        self.check(
                            resume != self.machine.state().serves(),
                            "a key is kept only to resume with",
                        );
                        self.kept = resume;
                        next = Some(self.probe(deadline));
                    }
                    Action::Fence => self.close(),
                    Action::Open => {
                        self.check(
                            self.last_answer == Answer::Good && self.kept && !self.open,
                            "opened with a key",
                        );
                        // Now and then the key is not that of the container.
                        let good = self.lots.below(16) > 0;
                        (self.open, self.key_in_memory) = (good, good);
                        self.lease = good.then_some(self.now + self.policy.probe_interval * 2);
                        next = Some(Event::Opened(good));
                        if good {
                            self.heard_yes();
                        }
                    }
                    Action::Report(kind) => self.judge(kind),
                    Action::End => {}
                }
            }
            if self.machine.state().serves() {
                self.lease = self.machine.lease();
            }
        }
        self.check(
            self.machine.state().serves() == self.open || self.watch_is_due(),
            "the gate is as the machine says",
        );
        self.check(self.key_in_memory == self.open, "the key is behind the gate or nowhere");
        if let Some(at) = self.machine.fence_at() {
            self.check(self.lease.is_some_and(|lease| lease <= at), "the lease outlives the grace");
        }
    }

    /// The watch has closed the gate, and the guard does not know yet.
    fn watch_is_due(&self) -> bool {
        !self.open && self.machine.state().serves()
    }

    /// The vault takes its time, may change its mind meanwhile, and the thread may hang in it.
    fn probe(&mut self, deadline: Duration) -> Event {
        let takes = self.lots.up_to(deadline);
        let hangs = if self.lots.below(64) == 0 {
            self.lots.up_to(self.policy.probe_interval * 4)
        } else {
            Duration::ZERO
        };
        let answer = self.vault.answer();
        self.now += takes;
        if !hangs.is_zero() {
            self.stuck = Some(self.now + hangs);
            self.has_hung = true;
            // Nobody renews the lease meanwhile.
            let wakes = self.now + hangs;
            if let Some(end) = self.lease.filter(|end| self.open && *end < wakes) {
                self.now = self.now.max(end);
                self.watch();
            }
            self.now = wakes;
        }
        self.watch();
        self.last_answer = answer;
        match answer {
            // What comes when the gate is closed by the lease comes too late.
            _ if self.watch_is_due() => {}
            Answer::Good if self.open => self.heard_yes(),
            Answer::Good => {}
            Answer::Denied(denial) if denial != Denial::Firewall => self.denials.push(self.now),
            Answer::Denied(_) => self.note(Cause::Firewall),
            Answer::Transient { .. } => self.note(Cause::Outage),
            Answer::Auth => self.note(Cause::Auth),
            Answer::Corrupt => {
                self.used = self.now;
                self.note(Cause::Corrupt);
            }
        }
        Event::Answer(answer)
    }

    fn heard_yes(&mut self) {
        self.denials.clear();
        self.began = [None; 5];
        self.used = self.now;
    }

    fn note(&mut self, cause: Cause) {
        self.trouble = Some(self.now);
        self.began[cause as usize].get_or_insert(self.now);
    }

    /// Was that fence allowed?
    fn judge(&mut self, kind: EventKind) {
        let EventKind::Fenced { why } = kind else { return };
        let interval = self.policy.probe_interval;
        let long_enough = |from: Option<Moment>, grace| from.is_some_and(|from| self.now >= from + grace);
        let allowed = match why {
            Why::Denied(denial) => {
                let confirmed = matches!(self.denials[..], [first, .., last] if last - first >= self.machine.confirm_after());
                self.last_answer == Answer::Denied(denial) && (self.local || confirmed)
            }
            Why::Unconfirmed(_) => !self.local && long_enough(self.denials.first().copied(), interval),
            Why::Expired(Cause::Outage) => {
                matches!(self.policy.outage_grace, Grace::For(grace) if self.now >= self.used + grace)
            }
            Why::Expired(Cause::Auth) => {
                long_enough(self.began[Cause::Auth as usize], self.policy.auth_grace)
            }
            Why::Expired(Cause::Firewall) => {
                long_enough(self.began[Cause::Firewall as usize], self.policy.firewall_grace)
            }
            Why::Expired(_) => false,
            Why::Unguarded => self.has_hung,
        };
        self.check(allowed, &format!("a fence without reason: {why:?}, denials {:?}", self.denials));
    }

    /// Lets time pass until `until`, as the guard's and the watch's threads would.
    fn run(&mut self, until: Moment) {
        let mut steps = 0;
        while self.now < until {
            steps += 1;
            self.check(steps < 100_000, "time does not pass");
            let due = self.machine.wake();
            let lease = if self.open { self.lease.unwrap_or(Moment::MAX) } else { Moment::MAX };
            let next = due.min(lease).min(until).max(self.now);
            self.now = next;
            self.promise();
            if self.watch() {
                self.tell(Event::Lapsed);
            }
            if self.machine.state().serves() && !self.open {
                self.tell(Event::Lapsed);
            }
            if self.now >= due {
                self.tell(Event::Tick);
            }
            self.promise();
        }
    }

    /// The bound on how long I/O goes on after a revocation.
    fn promise(&mut self) {
        if let Some(first) = self.denials.first().filter(|_| self.serves()) {
            // Whatever the vault says then, if it says anything.
            self.check(self.now <= *first + self.policy.probe_interval, "I/O long after a first denial");
        }
        let Vault::Denies(_) = self.vault else { return };
        if !self.serves() || self.has_hung {
            return;
        }
        let interval = self.policy.probe_interval;
        let recent = self.trouble.is_some_and(|at| at + interval * 2 >= self.since);
        let bound = if recent { interval * 2 } else { interval.mul_f64(1.25) };
        self.check(self.now <= self.since + bound, "I/O after the promised time");
    }

    fn turn(&mut self) {
        self.vault = self.lots.one_of(&Vault::ALL);
        if self.vault == Vault::Away(None) && self.lots.below(2) == 0 {
            self.vault = Vault::Away(Some(secs(self.lots.below(7200))));
        }
        self.since = self.now;
        self.has_hung = false;
        match self.lots.below(8) {
            0 => self.tell(Event::Poke),
            1 => self.tell(Event::HeaderChanged),
            2 => {
                let seconds = i64::try_from(self.lots.below(1 << 23)).unwrap();
                self.tell(Event::Expires(seconds));
            }
            _ => {}
        }
        // Mostly a few probes long, sometimes longer than a grace.
        let long = self.lots.below(32) == 0;
        let time = self.lots.up_to(self.policy.probe_interval * if long { 100 } else { 3 });
        self.run(self.now + time);
    }
}

fn history(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    for _ in 0..TURNS {
        world.turn();
    }
    world.vault = Vault::Allows;
    world.since = world.now;
    // A key that is not the container's, or a hanging thread, may cost some rounds.
    for _ in 0..64 {
        let time = world.policy.probe_interval * 2;
        world.run(world.now + time);
        if world.machine.state() == State::Ready && world.serves() {
            break;
        }
    }
    world.check(world.machine.state() == State::Ready && world.serves(), "it does not resume");
    (world.fences, u64::from(world.denials.is_empty()))
}

#[test]
fn a_million_histories_keep_every_promise() {
    let threads = u64::try_from(std::thread::available_parallelism().map_or(2, usize::from)).unwrap();
    let total: u64 = std::thread::scope(|scope| {
        let share = |n| {
            move || {
                (n..HISTORIES)
                    .step_by(usize::try_from(threads).unwrap())
                    .map(|seed| history(seed).0)
                    .sum::<u64>()
            }
        };
        let workers: Vec<_> = (0..threads).map(|n| scope.spawn(share(n))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    println!("{HISTORIES} histories, {total} fences");
    assert!(total > HISTORIES, "hardly anything happened: {total} fences");
}
