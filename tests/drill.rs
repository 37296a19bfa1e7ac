//! Does a drill stop and resume the live mounts of a set as the real thing would, report figures that keep the promise, say
//! before what it will do, and leave nothing behind, also when it is killed?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::Stdio;

use serde_json::Value;
use support::{Home, Mount, eventually};

fn two_mounts(home: &Home) -> (Mount<'_>, Mount<'_>) {
    for name in ["a.wd", "b.wd"] {
        home.create(name, "1M", &[]);
    }
    (home.mount("a.wd", &[]), home.mount("b.wd", &[]))
}

fn state(mount: &Mount<'_>) -> String {
    mount.status()["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_drill_of_revocation_stops_and_resumes_every_mount_of_the_set_within_the_promise() {
    let home = Home::ready();
    let (a, b) = two_mounts(&home);
    let report = home.json(["drill", "revoke", "default", "--yes"]);
    println!("{report:#}");
    assert_eq!((&report["drill"], &report["kept"]), (&Value::from("revoke"), &Value::Bool(true)));
    let mounts = report["mounts"].as_array().unwrap();
    assert_eq!(mounts.len(), 2);
    for mount in mounts {
        // The embedded vault is looked at each second.
        for name in ["stopSeconds", "resumeSeconds"] {
            let seconds = mount[name].as_f64().unwrap();
            assert!(seconds < 30.0, "{name}: {seconds}");
        }
        assert!(mount["failedReads"].as_u64().unwrap() > 0, "I/O stopped");
        assert!(mount["longestPauseSeconds"].as_f64().unwrap() >= 1.9, "and stayed so for a while");
    }
    for mount in [a, b] {
        assert_eq!(state(&mount), "ready");
        assert_eq!(mount.status()["guard"]["fences"], 1);
        assert_eq!(std::fs::read(&mount.file).unwrap().len(), 1 << 20);
        mount.unmount();
    }
}

#[test]
fn a_drill_of_an_outage_degrades_mounts_whose_io_goes_on() {
    let home = Home::ready();
    let (a, b) = two_mounts(&home);
    let report = home.json(["drill", "outage", "default", "--yes"]);
    println!("{report:#}");
    assert_eq!((&report["drill"], &report["kept"]), (&Value::from("outage"), &Value::Bool(true)));
    for mount in report["mounts"].as_array().unwrap() {
        assert_eq!((&mount["stopSeconds"], &mount["failedReads"]), (&Value::Null, &Value::from(0)));
    }
    for mount in [a, b] {
        assert_eq!((state(&mount).as_str(), &mount.status()["guard"]["fences"]), ("ready", &Value::from(0)));
        mount.unmount();
    }
}

#[test]
fn a_drill_that_is_killed_leaves_no_mount_fenced() {
    let home = Home::ready();
    home.create("a.wd", "1M", &[]);
    let mount = home.mount("a.wd", &[]);
    let mut command = home.command(["drill", "revoke", "default", "--yes"]);
    let mut drill = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the fence", || (state(&mount) == "revoked").then_some(()));
    drill.kill().unwrap();
    drill.wait().unwrap();
    eventually("its end", || (state(&mount) == "ready").then_some(()));
    mount.unmount();
}

#[test]
fn a_drill_says_what_it_will_do_and_does_nothing_unasked() {
    let home = Home::ready();
    home.create("a.wd", "1M", &[]);
    let none = home.wrapdisk(["drill", "revoke", "default", "--yes"]).fails(1);
    assert!(none.contains("no mount of this set"), "{none}");
    let mount = home.mount("a.wd", &["--qmp", "vm.qmp"]);
    let unasked = home.wrapdisk(["drill", "revoke", "default"]).fails(2);
    for said in [mount.place.to_str().unwrap(), "I/O ends with errors", "vm.qmp (gone) is ENDED", "--yes"] {
        assert!(unasked.contains(said), "{said}: {unasked}");
    }
    home.wrapdisk(["drill", "revoke", "elsewhere", "--yes"]).fails(1);
    assert_eq!(mount.status()["guard"]["fences"], 0);
    mount.unmount();
}

#[test]
fn a_drill_of_rotation_brings_every_mount_under_a_new_version_and_none_notices() {
    let home = Home::ready();
    let (a, b) = two_mounts(&home);
    // The disk that the template of this home was made with is gone for good; a rotation would wait for it.
    let known = home.json(["set", "show", "default"]);
    let gone = known["disks"].as_array().unwrap().iter().map(|disk| disk["path"].as_str().unwrap());
    let gone = gone.filter(|path| path.ends_with("first.wd")).collect::<Vec<_>>();
    assert_eq!(gone.len(), 1, "{known:#}");
    home.wrapdisk(["set", "forget", gone[0]]).ok();
    let old = a.status()["key"].clone();
    let report = home.json(["drill", "rotate", "default", "--yes"]);
    println!("{report:#}");
    assert_eq!((&report["kept"], &report["left"]), (&Value::Bool(true), &Value::from(0)));
    for mount in report["mounts"].as_array().unwrap() {
        assert_eq!((&mount["failedReads"], &mount["follows"]), (&Value::from(0), &Value::Bool(true)));
    }
    for mount in [a, b] {
        assert_eq!(mount.status()["key"], report["keyUrl"]);
        assert_ne!(mount.status()["key"], old);
        mount.unmount();
    }
}
