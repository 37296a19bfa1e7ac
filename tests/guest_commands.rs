//! Are the virtual machines of a mount told, listed and forgotten as its user says, does `status` show them, and is a QEMU
//! found that nobody told of?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guest_support;
mod support;

use std::os::unix::net::UnixListener;
use std::path::Path;

use guest_support::Qemu;
use serde_json::Value;
use support::{Home, eventually};

/// A QEMU whose disk is what a mount presents.
fn guest(file: &Path, qmp: &Path) -> Qemu {
    let drive = format!("driver=file,filename={},node-name=d,locking=off,cache.direct=on", file.display());
    Qemu::start(qmp, &["-S", "-blockdev", &drive, "-device", "virtio-blk,drive=d,share-rw=on"])
}

fn states(list: &Value) -> Vec<String> {
    list["guests"].as_array().unwrap().iter().map(|g| g["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_guest_is_added_listed_shown_by_status_and_removed() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    assert_eq!(home.wrapdisk(["guest", "list"]).ok(), "no guests");
    let mut qemu = guest(&mount.file, &home.path("vm.qmp"));
    let list = home.json(["guest", "list", "vm.wd"]);
    assert_eq!(list[0]["unregistered"][0]["pid"], qemu.child.id());
    assert!(home.wrapdisk(["guest", "list"]).ok().contains("qemu-system-x86 (not registered)"));
    assert!(home.wrapdisk(["status"]).ok().contains("not registered"));

    // As the user types it: relative to where he is.
    let added = home.wrapdisk(["guest", "add", "vm.wd.mnt", "--qmp", "vm.qmp"]);
    assert_eq!(added.err, "");
    added.ok();
    let list = &home.json(["guest", "list"])[0];
    assert_eq!(list["mountpoint"], mount.place.to_str().unwrap());
    assert_eq!(list["unregistered"].as_array().unwrap().len(), 0);
    let one = &list["guests"][0];
    assert_eq!(one["qmp"], home.path("vm.qmp").to_str().unwrap());
    assert_eq!((one["pid"].as_u64(), &one["usesDisk"]), (Some(qemu.child.id().into()), &Value::Bool(true)));
    qemu.monitor().cont().unwrap();
    assert_eq!(states(&mount.status()), ["running"]);
    assert!(home.wrapdisk(["status", "vm.wd"]).ok().contains(&format!("{} (running)", home.text("vm.qmp"))));

    // Before its key is taken away, or another given, it is named.
    for stop in ["key disable disk-kek", "revoke --set default"] {
        let stop: Vec<_> = stop.split(' ').chain(["--dry-run"]).collect();
        let mount = &home.json(stop.clone())["mounts"][0];
        assert_eq!(
            (&mount["guests"][0]["qmp"], &mount["guests"][0]["state"]),
            (&one["qmp"], &"running".into())
        );
        let said = home.wrapdisk(stop).ok();
        assert!(said.contains("vm.qmp (running)") && said.contains("its guests are shut down"), "{said}");
    }

    qemu.monitor().quit().unwrap();
    qemu.ends();
    assert_eq!(states(&home.json(["guest", "list"])[0]), ["gone"]);
    home.wrapdisk(["guest", "remove", "vm.wd", "--qmp", "vm.qmp"]).ok();
    home.wrapdisk(["guest", "remove", "vm.wd", "--qmp", "vm.qmp"]).fails(1);
    assert_eq!(home.wrapdisk(["guest", "list"]).ok(), "no guests");
    mount.unmount();
}

#[test]
fn a_mount_is_told_of_its_guests_when_it_begins_and_they_need_not_be_there_yet() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &["--qmp", "first.qmp", "--qmp", home.text("second.qmp")]);
    assert_eq!(states(&mount.status()), ["gone", "gone"]);
    let qemu = guest(&mount.file, &home.path("first.qmp"));
    assert_eq!(states(&mount.status()), ["other", "gone"]); // prelaunch
    drop(qemu);
    mount.unmount();
}

#[test]
fn odd_sockets_are_said_and_hold_up_no_status() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let later = home.wrapdisk(["guest", "add", "vm.wd", "--qmp", "later.qmp"]);
    assert!(later.err.contains("nobody listens there yet"), "{}", later.err);
    let _silent: Vec<_> = (0..4)
        .map(|n| {
            let socket = UnixListener::bind(home.path(&format!("silent{n}"))).unwrap();
            let added = home.wrapdisk(["guest", "add", "vm.wd", "--qmp", &format!("silent{n}")]);
            assert!(added.err.contains("no answer"), "{}", added.err);
            socket
        })
        .collect();
    // All at once: half a second for all, not for each; and the other mount's line of the listing is there.
    assert_eq!(states(&mount.status()), ["gone", "silent", "silent", "silent", "silent"]);
    // Somebody else's disk.
    std::fs::File::create(home.path("other.img")).unwrap().set_len(1 << 20).unwrap();
    let _other = guest(&home.path("other.img"), &home.path("other.qmp"));
    let added = home.wrapdisk(["guest", "add", "vm.wd", "--qmp", "other.qmp"]);
    assert!(added.err.contains("is not among its disks"), "{}", added.err);
    // Not QMP at all: the mount's own control socket answers something else.
    let web = UnixListener::bind(home.path("web")).unwrap();
    std::thread::spawn(move || {
        for mut peer in web.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut peer, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let refused = home.wrapdisk(["guest", "add", "vm.wd", "--qmp", "web"]).fails(1);
    assert!(refused.contains("no object of QMP"), "{refused}");
    home.wrapdisk(["guest", "add", "nothing.wd", "--qmp", "later.qmp"]).fails(1);
    home.wrapdisk(["guest", "add", "vm.wd"]).fails(2);
    eventually("unmount", || home.wrapdisk(["umount", "vm.wd.mnt"]).status.success().then_some(()));
}
