//! Does a rotation of a set's key leave the I/O of its mounted disks alone: no error while fio works on four of them, and all
//! of them under the newest version when it is done?
//!
//! `WRAPDISK_LONG=1`: 50 rotations. What the latencies notice is measured by benches/rotation/run, not judged here.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Home, eventually};

const MOUNTS: usize = 4;

/// fio's own verification: what is read is what was written, by a checksum in each block.
fn fio(files: &[&str], seconds: usize) -> Command {
    let mut fio = Command::new("fio");
    fio.args(
        "--output-format=json --rw=randrw --rwmixread=70 --bs=4k --iodepth=16 --ioengine=libaio --direct=1"
            .split(' '),
    );
    fio.args(
        "--size=8M --time_based --verify=crc32c --verify_fatal=1 --group_reporting --overwrite=1".split(' '),
    );
    fio.arg(format!("--runtime={seconds}"));
    for (n, file) in files.iter().enumerate() {
        fio.args([format!("--name=disk{n}"), format!("--filename={file}")]);
    }
    fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    fio
}

#[test]
fn fio_on_four_mounts_sees_no_error_while_their_set_rotates_again_and_again() {
    let (rotations, seconds) = if std::env::var_os("WRAPDISK_LONG").is_some() { (50, 150) } else { (6, 15) };
    let home = Home::ready();
    home.wrapdisk(["key", "create", "kek", "--size", "2048"]).ok();
    home.wrapdisk(["set", "create", "load", "--key", "kek", "--grant"]).ok();
    let mounts: Vec<_> = (0..MOUNTS)
        .map(|n| {
            let name = format!("{n}.wd");
            home.create(&name, "16M", &["--set", "load"]);
            home.mount(&name, &[])
        })
        .collect();
    let files: Vec<&str> = mounts.iter().map(|m| m.text()).collect();
    let fio = fio(&files, seconds).spawn().expect("fio must be installed (tests/run installs it)");
    for n in 0..rotations {
        let new = home.json(["key", "rotate", "kek"])["kid"].as_str().unwrap().to_owned();
        for mount in &mounts {
            eventually("every mount follows", || (mount.status()["key"] == new.as_str()).then_some(()));
        }
        // Spread over fio's time, not a judgement of it.
        std::thread::sleep(Duration::from_millis(u64::try_from(n % 3 * 100).unwrap()));
    }
    let done = fio.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    let report: Value = serde_json::from_str(&out[out.find('{').unwrap()..]).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{report}");
    let total = job["read"]["total_ios"].as_u64().unwrap() + job["write"]["total_ios"].as_u64().unwrap();
    assert!(total > 500, "{total} requests are no load");

    home.wrapdisk(["set", "wait", "load", "--timeout", "60"]).ok();
    let set = home.json(["set", "show", "load"]);
    let newest = home.json(["key", "show", "kek"])["kid"].clone();
    assert_eq!(set["properties"]["previousKeys"], Value::Array(Vec::new()));
    assert_eq!(set["properties"]["activeKey"]["keyUrl"], newest);
    assert_eq!(set["properties"]["autoKeyRotationError"], Value::Null);
    for (n, mount) in mounts.into_iter().enumerate() {
        assert_eq!(mount.status()["io"]["errors"], 0);
        let tokens = home.json(["info", &format!("{n}.wd")])["tokens"].clone();
        assert_eq!((tokens.as_array().unwrap().len(), &tokens[0]["kid"]), (1, &newest));
        mount.unmount();
    }
}
