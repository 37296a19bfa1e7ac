//! Does I/O end when the guard itself fails: when its thread dies, when it hangs, when the vault's answers take for ever? And does
//! nothing that is told about the fence hold it up? The guard's threads over a real disk, with a vault that misbehaves.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use support::eventually;
use wrapdisk::cache::BlockCache;
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::guard::machine::Answer;
use wrapdisk::guard::{Guard, GuardEvent, Outcome, Prober, Responder, Setup, Target};
use wrapdisk::revocation::{Grace, OnRevoke, Policy, PolicyChange};
use wrapdisk::store::MemoryStore;
use wrapdisk::units::{ByteLen, ByteOffset, SectorSize};
use wrapdisk::vault::Denial;
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const SIZE: u32 = 1 << 20;

/// What the vault does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Answers(Answer),
    Hangs,
    Panics,
}

#[derive(Debug)]
struct Vault {
    key: VolumeKey,
    does: Mutex<Does>,
    changed: Condvar,
    generation: AtomicU64,
}

impl Vault {
    fn set(&self, does: Does) {
        *self.does.lock().unwrap() = does;
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn cipher(&self) -> XtsCipher {
        XtsCipher::new(&self.key, SectorSize::B4096, Engine::best()).unwrap()
    }
}

impl Prober for Vault {
    fn target(&self) -> Target {
        Target { set: "default".to_owned(), kid: "https://vault/keys/k/1".to_owned(), local: true }
    }

    fn probe(&self, _deadline: Duration, resume: bool) -> Outcome {
        let does = self.does.lock().unwrap();
        let does = *self.changed.wait_while(does, |does| *does == Does::Hangs).unwrap();
        let Does::Answers(answer) = does else { panic!("the vault's client has a defect") };
        let cipher = (resume && answer == Answer::Good).then(|| Box::new(self.cipher()));
        Outcome { answer, reason: "as the test wants it".to_owned(), cipher }
    }

    fn generation(&self) -> Option<u64> {
        Some(self.generation.load(Ordering::SeqCst))
    }

    fn expires(&self, _deadline: Duration) -> Option<i64> {
        None
    }
}

/// Hangs in everything, until it is let go.
#[derive(Debug, Default)]
struct Stuck(Mutex<bool>, Condvar);

impl Stuck {
    fn hang(&self) {
        let free = self.0.lock().unwrap();
        drop(self.1.wait_while(free, |free| !*free).unwrap());
    }

    fn let_go(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

impl Responder for Stuck {
    fn before_fence(&self, _window: Duration) {
        self.hang();
    }
    fn fenced(&self, _event: &GuardEvent) {
        self.hang();
    }
    fn resumed(&self, _event: &GuardEvent) {
        self.hang();
    }
    fn changed(&self, _event: &GuardEvent) {
        self.hang();
    }
    fn has_guests(&self) -> bool {
        true
    }
}

struct Scene {
    vault: Arc<Vault>,
    disk: Arc<PlainDisk>,
    responder: Arc<Stuck>,
    guard: Guard,
}

fn scene(change: PolicyChange) -> Scene {
    let key = VolumeKey::generate().unwrap();
    let layout = Layout {
        offset: ByteOffset::ZERO,
        sector_size: SectorSize::B4096,
        size: ByteLen::from(SIZE),
        zero_holes: true,
        discards: true,
    };
    let store = Arc::new(MemoryStore::new(usize::try_from(SIZE).unwrap()));
    let cipher = XtsCipher::new(&key, SectorSize::B4096, Engine::best()).unwrap();
    let volume = EncryptedVolume::new(store, layout, Gate::open(cipher)).unwrap();
    let disk = Arc::new(PlainDisk::new(volume, BlockCache::new(ByteLen::from(1 << 20)).unwrap(), false));
    let does = Mutex::new(Does::Answers(Answer::Good));
    let vault = Arc::new(Vault { key, does, changed: Condvar::new(), generation: AtomicU64::new(0) });
    let responder = Arc::new(Stuck::default());
    let short = PolicyChange { probe_interval: Some(Duration::from_secs(5)), ..change };
    let guard = Guard::start(Setup {
        policy: Policy::default().with(&short).unwrap(),
        uuid: "the disk".to_owned(),
        mountpoint: "/mnt".into(),
        disk: Arc::clone(&disk),
        prober: Arc::clone(&vault) as _,
        responder: Arc::clone(&responder) as _,
        settle: Arc::new(|| ()),
    });
    disk.write_at(ByteOffset::ZERO, b"in the cache").unwrap();
    Scene { vault, disk, responder, guard: guard.unwrap() }
}

fn read(disk: &PlainDisk) -> Result<Vec<u8>> {
    let mut found = vec![0; 12];
    disk.read_at(ByteOffset::ZERO, &mut found).map(|_| found)
}

#[track_caller]
fn ends(s: &Scene, what: &str) -> Duration {
    let start = Instant::now();
    eventually(what, || read(&s.disk).err().map(|e| assert_eq!(e.kind(), ErrorKind::Revoked)));
    eventually("the wipe", || (s.disk.cache_stats().unwrap().blocks == 0).then_some(()));
    assert!(s.disk.volume().gate().is_closed(), "{what}: the key is gone, too");
    start.elapsed()
}

fn none(grace: Grace) -> PolicyChange {
    PolicyChange { outage_grace: Some(grace), on_revoke: Some(OnRevoke::Eio), ..PolicyChange::default() }
}

#[test]
fn a_guard_that_dies_takes_the_key_with_it() {
    let s = scene(PolicyChange::default());
    assert_eq!(read(&s.disk).unwrap(), b"in the cache");
    s.vault.set(Does::Panics);
    s.guard.poke();
    ends(&s, "I/O after the guard's death");
    let status = s.guard.status().unwrap();
    assert_eq!((&*status.state, status.why.as_deref()), ("revoked", Some("unguarded")));
    s.responder.let_go();
}

#[test]
fn a_guard_that_hangs_loses_its_lease_and_serves_again_when_it_lives() {
    // Without grace the lease is two intervals.
    let s = scene(none(Grace::For(Duration::ZERO)));
    s.vault.set(Does::Hangs);
    s.guard.poke();
    let took = ends(&s, "I/O under a guard that hangs");
    println!("a guard that hangs: I/O ended after {took:?}, allowed 10 s");
    assert!(took < Duration::from_secs(30));
    s.vault.set(Does::Answers(Answer::Good));
    eventually("it lives again", || read(&s.disk).ok());
    assert_eq!(s.guard.status().unwrap().fences, 1);
    s.responder.let_go();
}

#[test]
fn what_is_told_of_the_fence_cannot_hold_it_up() {
    let change = PolicyChange {
        on_revoke: Some(OnRevoke::Shutdown),
        shutdown_window: Some(Duration::from_secs(1)),
        ..PolicyChange::default()
    };
    let s = scene(change);
    s.vault.set(Does::Answers(Answer::Denied(Denial::Disabled)));
    let took = ends(&s, "I/O beside a responder that hangs");
    assert!(took >= Duration::from_millis(900), "guests had their window: {took:?}");
    s.vault.set(Does::Answers(Answer::Good));
    eventually("and it resumes beside it", || read(&s.disk).ok());
    s.responder.let_go();
}

#[test]
fn a_drill_is_as_good_as_a_denial_and_ends_without_a_trace() {
    let s = scene(none(Grace::Never));
    s.guard.drill(Some((Answer::Denied(Denial::Disabled), Duration::from_secs(60))));
    ends(&s, "I/O in a drill");
    let status = s.guard.status().unwrap();
    assert!(status.state == "revoked" && status.reason.contains("drill"), "{status:?}");
    s.guard.drill(None);
    assert_eq!(eventually("I/O after it", || read(&s.disk).ok()), b"in the cache");
    s.responder.let_go();
}

fn gate() -> Gate {
    let key = VolumeKey::generate().unwrap();
    Gate::open(XtsCipher::new(&key, SectorSize::B4096, Engine::best()).unwrap())
}

#[test]
fn after_the_lease_no_ticket_is_worth_anything_until_it_is_renewed() {
    let gate = gate();
    let ticket = gate.enter().unwrap();
    gate.lend(Some(Duration::from_millis(30)));
    eventually("the end of the lease", || gate.enter().err());
    assert_eq!(gate.check(ticket).unwrap_err().kind(), ErrorKind::Revoked);
    assert_eq!(gate.with_cipher(ticket, |_| ()).unwrap_err().kind(), ErrorKind::Revoked);
    assert!(gate.has_lapsed() && !gate.is_open() && !gate.is_closed());
    gate.lend(Some(Duration::from_secs(3600)));
    gate.check(ticket).unwrap();
    assert!(gate.close(|| ()) && gate.is_closed());
}

#[test]
fn whoever_closes_the_gate_second_waits_for_the_wipe_as_well() {
    let gate = gate();
    let (wiping, wiped) = (Stuck::default(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            gate.close(|| {
                wiping.hang();
                wiped.fetch_add(1, Ordering::SeqCst);
            })
        });
        eventually("the first is at it", || gate.is_closed().then_some(()));
        let second = scope.spawn(|| {
            let closed = gate.close(|| panic!("wiped twice"));
            (closed, wiped.load(Ordering::SeqCst))
        });
        std::thread::sleep(Duration::from_millis(50)); // what must not end is watched for a while
        let early = second.is_finished();
        wiping.let_go();
        assert!(!early, "it returned before the wipe");
        assert!(first.join().unwrap());
        assert_eq!(second.join().unwrap(), (false, 1));
    });
}
