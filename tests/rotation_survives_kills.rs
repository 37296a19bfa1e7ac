//! Is no container lost, whenever the power fails inside a rewrap or the rotating process is killed, and does the next run
//! finish what is left with at most one unwrap, one wrap and one check an attempt?
//!
//! `WRAPDISK_LONG=1`: 1,000 disks, 200 snapshots and 50 images, killed more often.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod rotation_support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rotation_support::{Scene, header, kids, opens};
use wrapdisk::error::Result;
use wrapdisk::luks2::{Header, Kind};
use wrapdisk::set::rewrap::{self, Need, Order, Place, Source};
use wrapdisk::set::{NextKey, Set};
use wrapdisk::store::{BackingStore, FaultPlan, FaultyStore, MemoryStore, Stop};
use wrapdisk::units::ByteOffset;

/// A container in memory, as whoever has it would commit to it.
struct Bare<'a>(&'a dyn BackingStore);

impl Place for Bare<'_> {
    fn locked(&self, commit: &mut dyn FnMut(&dyn BackingStore) -> Result<()>) -> Result<()> {
        commit(self.0)
    }
}

fn in_memory(image: &[u8]) -> MemoryStore {
    let store = MemoryStore::new(image.len());
    store.write_at(ByteOffset::ZERO, image).unwrap();
    store
}

fn rewrap_in(scene: &Scene, set: &Set, store: &dyn BackingStore) -> Result<Header> {
    let header = Header::load(store)?;
    let order = Order { set, source: Source::Tokens, sole: false, reason: "test" };
    rewrap::rewrap(&scene.access, order, &header, &Bare(store)).map_err(|refused| refused.error)
}

#[test]
fn at_every_power_cut_inside_a_rewrap_the_container_opens_and_the_next_run_finishes_it() {
    let s = Scene::new();
    let path = s.fill(1, 0, 0).remove(0);
    // The data is a hole: the header and one sector are enough.
    let mut start = std::fs::read(&path).unwrap();
    start.truncate((16 << 20) + (1 << 20));
    let new = s.new_version();
    let set = s.set();
    let next = NextKey { vault: set.vault, kid: new, pinned: false, identity: set.identity, due: i64::MAX };
    let set = s.access.sets.begin_rotation(&set, &next, 0).unwrap().unwrap();
    let (mut states, mut cuts) = (BTreeSet::new(), 0);
    for n in 0.. {
        let plan = FaultPlan::default();
        let store = Arc::new(FaultyStore::recording(in_memory(&start), plan.clone()).unwrap());
        plan.stop_after(n, Stop::Silent);
        let _ = rewrap_in(&s, &set, &*store);
        for kept in 0..1_u64 << store.unsynced() {
            let left = in_memory(&store.crash_image(|i| kept >> i & 1 == 1));
            let found = Header::load(&left).unwrap();
            states.insert(format!("{:?} {}", rewrap::need(&found, &set), found.tokens().count()));
            let key = s.access.unlock(&found, "after the cut").unwrap().key;
            assert!(key.secret().ct_eq(s.key.secret()), "cut after {n}, kept {kept:b}");

            let head = s.audit_head();
            let finished = rewrap_in(&s, &set, &left).unwrap();
            assert_eq!(rewrap::need(&finished, &set), Need::Nothing);
            assert_eq!(finished.tokens().count(), 1);
            let calls = (s.records("KeyUnwrap", head), s.records("KeyWrap", head));
            let allowed = match rewrap::need(&found, &set) {
                Need::Nothing => (0, 0),
                Need::Finish => (1, 0),
                Need::Rewrap => (2, 1),
            };
            assert_eq!(calls, allowed, "cut after {n}, kept {kept:b}");
            cuts += 1;
        }
        if !plan.stopped() {
            break;
        }
    }
    assert!(cuts >= 10, "{cuts}");
    let all = ["Finish 2", "Nothing 1", "Rewrap 1"].map(str::to_owned);
    assert_eq!(states, all.into(), "every state was met");
}

#[test]
fn a_header_that_cannot_be_written_leaves_the_container_as_it_was() {
    let s = Scene::new();
    let path = s.fill(1, 0, 0).remove(0);
    let start = std::fs::read(&path).unwrap();
    s.new_version();
    let old = s.set();
    let report = wrapdisk::set::rotation::begin(&s.access, &old, 0).unwrap();
    let plan = FaultPlan::default();
    let store = FaultyStore::new(in_memory(&start), plan.clone());
    plan.stop_after(0, Stop::Errors);
    rewrap_in(&s, &report.set, &store).unwrap_err();
    plan.clear();
    let found = Header::load(&store).unwrap();
    assert_eq!(rewrap::need(&found, &report.set), Need::Rewrap);
    assert!(s.access.unlock(&found, "test").is_ok());
}

fn long() -> bool {
    std::env::var_os("WRAPDISK_LONG").is_some()
}

/// The program as the timer runs it, killed once so many containers are done.
fn rotate_until(scene: &Scene, done: usize) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wrapdisk"))
        .args(["set", "rotate", "--all", "--state"])
        .arg(scene.state())
        .env("WRAPDISK_HOME", scene.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return true;
        }
        if finished(scene) >= done {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(600), "it does not go on");
        std::thread::yield_now();
    }
}

/// How many containers the registry shows under the active version.
fn finished(scene: &Scene) -> usize {
    let set = scene.set();
    if set.previous.is_empty() && set.last_rotation.is_none() {
        return 0; // not begun
    }
    let rows = scene.access.sets.containers(Some(set.id)).unwrap();
    rows.iter().filter(|row| set.is_done(&row.kids)).count()
}

#[test]
fn kill_9_at_random_points_loses_nothing_and_wastes_little() {
    let (disks, snapshots, images, kills) = if long() { (1000, 200, 50, 25) } else { (60, 12, 3, 8) };
    let s = Scene::new();
    let all = s.fill(disks, snapshots, images);
    let count = all.len();
    let old = s.set().active;
    let new = s.new_version();
    let head = s.audit_head();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut killed, mut asked) = (0, 0);
    for n in 0..kills {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // Spread over the run, the very first moment included; each point a little off the one before.
        let at = count * n / kills + usize::try_from(seed % 3).unwrap();
        if rotate_until(&s, at) {
            break;
        }
        killed += 1;
        // Whatever the kill hit, everything opens, under the old version or the new one.
        for path in all.iter().skip(n % 7).step_by(if long() { 50 } else { 7 }) {
            assert!(opens(&s, path).unwrap(), "{}", path.display());
            asked += 1;
        }
    }
    assert!(killed >= kills / 2, "{killed} kills hit something");
    assert!(rotate_until(&s, usize::MAX));

    let set = s.set();
    assert_eq!((&set.active, set.previous.len(), &set.trouble), (&new, 0, &None));
    s.switch(&old, false);
    for path in &all {
        assert_eq!(kids(path), [new.to_string()], "{}", path.display());
        assert!(opens(&s, path).unwrap(), "{}", path.display());
    }
    let kinds = [Kind::Disk, Kind::Snapshot, Kind::Image]
        .map(|k| all.iter().filter(|p| header(p).kind() == k).count());
    assert_eq!(kinds, [disks, snapshots, images]);
    // One attempt each, and one more for each of the four that a kill may have interrupted; the rest this test asked itself.
    let attempts = count + 4 * killed;
    let (unwraps, wraps) = (s.records("KeyUnwrap", head) - asked - count, s.records("KeyWrap", head));
    assert!(wraps <= attempts, "{wraps} wraps for {count} containers and {killed} kills");
    assert!(unwraps <= 2 * attempts, "{unwraps} unwraps for {count} containers and {killed} kills");
    s.vault().verify_audit().unwrap();
}
