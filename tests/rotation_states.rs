//! Is a rotation begun once, by whoever is first, and ended only when the registry shows nothing that needs an old version,
//! whatever order things happen in and whoever does them?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use tempfile::TempDir;
use uuid::Uuid;
use wrapdisk::envelope::Kid;
use wrapdisk::error::ErrorKind;
use wrapdisk::set::{ContainerRecord, NewSet, NextKey, Set, SetStore, Trouble};

fn kid(version: u32) -> Kid {
    Kid::parse(&format!("https://demo.vault.example/keys/kek/{version}")).unwrap()
}

fn store() -> (TempDir, SetStore, Set) {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    let new = NewSet {
        name: "prod".into(),
        vault: Uuid::from_u128(1),
        key: kid(0).versionless().to_owned(),
        active: kid(0),
        pinned: false,
        identity: Uuid::from_u128(2),
    };
    let set = store.create(&new).unwrap();
    (dir, store, set)
}

fn next(version: u32) -> NextKey {
    NextKey {
        vault: Uuid::from_u128(1),
        kid: kid(version),
        pinned: false,
        identity: Uuid::from_u128(2),
        due: 3600,
    }
}

fn record(store: &SetStore, set: &Set, n: u8, versions: &[u32]) {
    let container = ContainerRecord {
        uuid: Uuid::from_u128(u128::from(n)).to_string(),
        path: format!("/disks/{n}").into(),
        kind: "disk".into(),
        set: Some(set.id),
        kids: versions.iter().map(|v| kid(*v).to_string()).collect(),
        last_seen: 0,
        last_rewrap: Some(0),
        trouble: None,
    };
    store.record(&container).unwrap();
}

#[test]
fn of_many_that_begin_at_once_one_does() {
    let (dir, store, set) = store();
    let began: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (dir, set) = (dir.path(), set.clone());
                scope.spawn(move || {
                    let store = SetStore::open(dir).unwrap();
                    store.begin_rotation(&set, &next(1), 7).unwrap().is_some()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(began.iter().filter(|b| **b).count(), 1, "{began:?}");
    let now = store.by_name("prod").unwrap();
    assert_eq!((now.active.clone(), now.previous.len()), (kid(1), 1));
    assert_eq!((now.previous[0].kid.clone(), now.previous[0].since), (kid(0), 7));
}

#[test]
fn a_set_that_a_container_names_stays() {
    let (_dir, store, set) = store();
    record(&store, &set, 1, &[0]);
    let e = store.delete(&set).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.chain().contains("1 container(s)"), "{e:?}");
    store.forget(&Uuid::from_u128(1).to_string(), "/disks/1".as_ref()).unwrap();
    store.delete(&set).unwrap();
    assert_eq!(store.delete(&set).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.begin_rotation(&set, &next(1), 0).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn the_same_trouble_goes_on_and_another_one_begins_anew() {
    let (_dir, store, set) = store();
    let trouble = |code: &str, time| Trouble {
        since: time,
        time,
        kid: None,
        code: code.into(),
        message: String::new(),
        transient: true,
    };
    for (code, time, since, serious) in
        [("A", 10, 10, false), ("A", 3609, 10, false), ("A", 3610, 10, true), ("B", 3700, 3700, false)]
    {
        store.set_trouble(set.id, Some(&trouble(code, time))).unwrap();
        let now = store.by_name("prod").unwrap().trouble.unwrap();
        assert_eq!((now.since, now.time, now.is_serious()), (since, time, serious), "{code} at {time}");
    }
    store.set_trouble(set.id, None).unwrap();
    assert_eq!(store.by_name("prod").unwrap().trouble, None);
}

/// What the store must say after the same steps, in the simplest words.
#[derive(Default)]
struct Model {
    active: u32,
    previous: Vec<u32>,
    containers: BTreeMap<u8, Vec<u32>>,
}

impl Model {
    fn begin(&mut self, version: u32) {
        self.previous.retain(|old| *old != version && *old != self.active);
        if self.active != version {
            self.previous.push(self.active);
        }
        self.active = version;
    }

    fn is_done(&self, versions: &[u32]) -> bool {
        versions == [self.active]
    }
}

#[test]
fn random_histories_agree_with_a_model() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut ended = 0;
    for _ in 0..12 {
        let (_dir, store, first) = store();
        let mut stale = first.clone();
        let mut model = Model::default();
        for step in 0..60 {
            let set = store.by_name("prod").unwrap();
            match random(6) {
                0 => {
                    let version = u32::try_from(random(5)).unwrap();
                    let began = store.begin_rotation(&set, &next(version), step).unwrap().unwrap();
                    model.begin(version);
                    assert_eq!(began.active, kid(version));
                }
                1 => {
                    // Who saw an older state does not begin.
                    let began = store.begin_rotation(&stale, &next(9), step).unwrap();
                    assert_eq!(began.is_some(), stale.active == kid(model.active));
                    if began.is_some() {
                        model.begin(9);
                    }
                }
                2 => stale = set.clone(),
                3 | 4 => {
                    let n = u8::try_from(random(4)).unwrap();
                    let old = u32::try_from(random(5)).unwrap();
                    let versions = match random(3) {
                        0 => vec![old],
                        1 if old != model.active => vec![model.active, old],
                        _ => vec![model.active],
                    };
                    record(&store, &set, n, &versions);
                    model.containers.insert(n, versions);
                }
                _ => {
                    for n in 0..4 * u8::try_from(random(2)).unwrap() {
                        record(&store, &set, n, &[model.active]);
                        model.containers.insert(n, vec![model.active]);
                    }
                    let expected = !model.previous.is_empty()
                        && model.containers.values().all(|versions| model.is_done(versions));
                    assert_eq!(store.end_rotation(set.id, step).unwrap(), expected);
                    if expected {
                        model.previous.clear();
                        ended += 1;
                        assert_eq!(store.by_name("prod").unwrap().last_rotation, Some(step));
                    }
                }
            }
            let set = store.by_name("prod").unwrap();
            let previous: Vec<_> = model.previous.iter().map(|v| kid(*v)).collect();
            assert_eq!(set.active, kid(model.active));
            assert_eq!(set.previous.iter().map(|p| p.kid.clone()).collect::<Vec<_>>(), previous);
            assert!(set.rotation_due.is_some() || set.previous.is_empty());
        }
    }
    assert!(ended > 5, "{ended} rotations ended: the histories mean nothing");
}
