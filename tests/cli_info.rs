//! Do info, check, status and set tell people and programs the same about a disk, by whatever name it goes: path, link,
//! mountpoint, presented file, uuid; whether it is mounted or not?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::fs::symlink;

use cli_support::overwrite;
use serde_json::{Value, json};
use support::Home;

/// The members of a JSON object, in their order.
fn members(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_else(|| panic!("{member} of {value}"))
}

#[test]
fn info_says_what_a_container_is() {
    let home = Home::ready();
    fs::write(home.path("pass"), "recover me").unwrap();
    home.create("vm.wd", "20M", &["--label", "vm", "--recovery-file", "pass"]);
    let info = home.json(["info", "vm.wd"]);
    let key = home.json(["key", "show", "disk-kek"]);
    let set = home.json(["set", "show", "default"]);
    let wanted = json!({
        "disk": home.text("vm.wd"), "uuid": info["uuid"], "label": "vm", "kind": "disk", "size": 20 << 20,
        "allocated": info["allocated"], "sectorSize": 4096, "offset": 16 << 20, "encryption": "aes-xts-plain64",
        "holes": "zeros", "discards": true, "seqid": 2,
        "tokens": [{ "id": 0, "set": format!("default/{}", text(&set, "id")), "kid": key["kid"], "alg": "RSA-OAEP-256" }],
        "keyslots": [{ "id": 0, "kdf": info["keyslots"][0]["kdf"] }],
        "warnings": [], "mountpoint": null,
    });
    assert_eq!((members(&info), &info), (members(&wanted), &wanted));
    assert!(text(&info["keyslots"][0], "kdf").starts_with("argon2id, 4 passes, "));
    assert!(info["allocated"].as_u64().unwrap() < 1 << 20);

    let said = home.wrapdisk(["info", "vm.wd"]).ok();
    let allocated = said.lines().find(|line| line.starts_with("allocated:")).unwrap();
    assert_eq!(
        said,
        format!(
            "disk:       {}\nlabel:      vm\nkind:       disk\nsize:       20 MiB (20971520 bytes)\n{allocated}\n\
             uuid:       {}\nencryption: aes-xts-plain64, 512-bit key, 4096-byte sectors\n\
             holes:      read as zeros; they show which sectors were never used\ndiscards:   free space\n\
             set:        default/{}\nkey:        {}\nkeyslot:    0: {}",
            home.text("vm.wd"),
            text(&info, "uuid"),
            text(&set, "id"),
            text(&key, "kid"),
            text(&info["keyslots"][0], "kdf")
        )
    );
}

#[test]
fn check_tries_every_copy_and_every_key() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let kid = home.json(["key", "show", "disk-kek"])["kid"].as_str().unwrap().to_owned();
    let token = format!("token 0: {kid}");
    assert_eq!(
        home.json(["check", "vm.wd"]),
        json!({ "disk": home.text("vm.wd"), "ok": true, "checks": [
            { "check": "header copies", "ok": true, "detail": "both good, seqid 1" },
            { "check": token, "ok": true, "detail": "opens; digest and MAC good" } ] })
    );
    assert_eq!(
        home.wrapdisk(["check", "vm.wd"]).ok(),
        format!("ok    header copies: both good, seqid 1\nok    {token}: opens; digest and MAC good")
    );

    // One copy bad, and the key disabled: both are said, the worse one decides.
    let primary = fs::read(home.path("vm.wd")).unwrap()[..1].to_vec();
    overwrite(&home.path("vm.wd"), b"X");
    home.wrapdisk(["key", "disable", "disk-kek"]).ok();
    let done = home.wrapdisk(["check", "vm.wd", "--output", "json"]);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&found["ok"], &found["checks"][0]["ok"], &found["checks"][1]["ok"]),
        (&false.into(), &false.into(), &false.into())
    );
    let detail = text(&found["checks"][0], "detail");
    assert!(detail.starts_with("the primary header is bad: "), "{detail}");
    assert!(detail.ends_with(" (the next writable mount repairs the losing copy)"), "{detail}");
    assert!(
        text(&found["checks"][1], "detail")
            .starts_with("Operation unwrapKey is not allowed on a disabled key")
    );
    let err = done.fails(5);
    assert!(err.ends_with(&format!("wrapdisk: {}: check failed", home.text("vm.wd"))), "{err}");

    overwrite(&home.path("vm.wd"), &primary);
    let done = home.wrapdisk(["check", "vm.wd"]);
    assert!(done.out.contains(&format!("FAIL  {token}: Operation unwrapKey")), "{}", done.out);
    done.fails(3);
}

#[test]
fn a_disk_goes_by_every_name_it_has() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    symlink("vm.wd", home.path("link.wd")).unwrap();
    let uuid = home.json(["info", "vm.wd"])["uuid"].as_str().unwrap().to_owned();
    let disk = home.text("vm.wd");
    for name in ["vm.wd", "./vm.wd", disk, "link.wd", &uuid, &uuid.to_uppercase()] {
        assert_eq!(home.json(["info", name])["disk"], disk, "{name}");
        assert_eq!(home.json(["check", name])["ok"], true, "{name}");
    }

    let mount = home.mount("vm.wd", &[]);
    for name in ["vm.wd", "link.wd", &uuid, "vm.wd.mnt", "vm.wd.mnt/disk.img"] {
        let info = home.json(["info", name]);
        assert_eq!(
            (&info["disk"], &info["mountpoint"]),
            (&disk.into(), &home.text("vm.wd.mnt").into()),
            "{name}"
        );
        assert_eq!(home.json(["check", name])["ok"], true, "{name}");
        assert_eq!(home.json(["status", name])[0]["uuid"], uuid, "{name}");
        home.wrapdisk(["volume-key", name, "--output", "out", "--yes"]).ok();
        assert_eq!(fs::read(home.path("out")).unwrap().len(), 64, "{name}");
        fs::remove_file(home.path("out")).unwrap();
        home.wrapdisk(["header", "backup", name, "out"]).ok();
        fs::remove_file(home.path("out")).unwrap();
        assert!(home.wrapdisk(["header", "dump", name]).ok().contains("wrapdisk-vault"), "{name}");
    }
    assert!(home.wrapdisk(["info", "vm.wd"]).ok().ends_with(&format!(
        "mounted:    at {} by process {}",
        mount.place.display(),
        mount.pid
    )));
    mount.unmount();

    for name in ["vm.wd", &uuid, "vm.wd.mnt"] {
        let mount = home.mount("vm.wd", &[]);
        home.wrapdisk(["umount", name]).ok();
        assert!(!support::is_alive(mount.pid));
        assert_eq!(home.wrapdisk(["status"]).ok(), "nothing is mounted", "{name}");
    }
    // By uuid, from anywhere.
    let done = support::finish(home.command(["mount", &uuid, home.text("vm.wd.mnt")]).current_dir("/"));
    assert_eq!(done.ok(), home.text("vm.wd.mnt/disk.img"));
    home.wrapdisk(["umount", &uuid]).ok();
}

#[test]
fn what_is_not_mounted_or_not_known_is_said() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let nobody = "11111111-2222-4333-8444-555555555555";
    let listed = "\n  wrapdisk status lists what is";
    for name in ["vm.wd", nobody, ".", "missing"] {
        for command in ["status", "umount"] {
            let err = home.wrapdisk([command, name]).fails(1);
            assert_eq!(err, format!("wrapdisk: {name}: not mounted{listed}"), "{command}");
        }
    }
    for command in ["info", "check", "seal"] {
        let unknown = format!("wrapdisk: {nobody}: no container with this uuid is known here");
        assert_eq!(home.wrapdisk([command, nobody]).fails(1), unknown);
        let missing = "wrapdisk: missing: open: No such file or directory (os error 2)\n  \
                       make a disk with: wrapdisk create FILE --size SIZE";
        assert_eq!(home.wrapdisk([command, "missing"]).fails(1), missing);
    }
    assert_eq!(home.json(["status"]), json!([]));

    // Two copies of one container: a uuid is not enough.
    fs::copy(home.path("vm.wd"), home.path("copy.wd")).unwrap();
    home.mount("copy.wd", &[]).unmount();
    let uuid = home.json(["info", "vm.wd"])["uuid"].as_str().unwrap().to_owned();
    assert_eq!(
        home.wrapdisk(["info", &uuid]).fails(1),
        format!(
            "wrapdisk: {uuid}: found several copies ({}, {}, ...), allowed one\n  name the one you mean by its path",
            home.text("copy.wd"),
            home.text("vm.wd")
        )
    );
    fs::remove_file(home.path("vm.wd")).unwrap();
    assert_eq!(home.json(["info", &uuid])["disk"], home.text("copy.wd"));
}

#[test]
fn status_tells_the_same_to_people_and_programs() {
    let home = Home::ready();
    home.create("a.wd", "1M", &[]);
    home.create("b.wd", "2M", &[]);
    let (a, b) = (home.mount("a.wd", &["--read-only"]), home.mount("b.wd", &["--cache-size", "0"]));
    overwrite(&b.file, &[1; 4096]);
    fs::read(&a.file).unwrap();
    let status = home.json(["status"]);
    assert_eq!(status.as_array().unwrap().len(), 2);
    let fields = [
        "uuid",
        "disk",
        "mountpoint",
        "file",
        "pid",
        "state",
        "size",
        "readOnly",
        "set",
        "key",
        "unguarded",
        "rotationError",
        "mountedAt",
        "memoryLocked",
        "io",
        "cache",
        "guard",
        "nextRotation",
        "guests",
        "unregistered",
    ];
    let counters = ["reads", "readBytes", "writes", "writtenBytes", "discards", "flushes", "errors"];
    for (one, name, size) in [(&status[0], "a.wd", 1 << 20), (&status[1], "b.wd", 2 << 20)] {
        assert_eq!((members(one), members(&one["io"])), (fields.to_vec(), counters.to_vec()));
        assert_eq!((text(one, "disk"), &one["size"]), (home.text(name), &size.into()));
        assert_eq!((text(one, "state"), &one["unguarded"]), ("ready", &false.into()));
        assert_eq!(one["key"], home.json(["key", "show", "disk-kek"])["kid"]);
        assert_eq!(one["uuid"], home.json(["info", name])["uuid"]);
    }
    assert_eq!((&status[0]["readOnly"], &status[1]["readOnly"]), (&true.into(), &false.into()));
    assert_eq!(status[0]["pid"], a.pid);
    assert!(status[0]["io"]["readBytes"].as_u64().unwrap() >= 1 << 20);
    assert!(status[1]["io"]["writtenBytes"].as_u64().unwrap() >= 4096);
    assert_eq!(
        members(&status[0]["cache"]),
        ["hits", "misses", "inserts", "evictions", "blocks", "capacity"]
    );
    assert_eq!(status[1]["cache"], Value::Null);

    let said = home.wrapdisk(["status"]).ok();
    let said =
        said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let said = said.join("\n");
    let (first, second) = said.split_once("\n\n").unwrap();
    for (part, one) in [(first, &status[0]), (second, &status[1])] {
        let file = text(one, "file");
        assert!(
            part.starts_with(&format!("disk: {}\nfile: {file}\nstate: ready", text(one, "disk"))),
            "{part}"
        );
        assert!(
            part.contains(&format!("\nkey: {}\n", text(one, "key")))
                && part.contains(&format!("\nprocess: {} since ", one["pid"])),
            "{part}"
        );
    }
    assert!(first.contains("\nstate: ready, read-only") && second.contains("\ncache: off"), "{said}");
    assert_eq!(home.wrapdisk(["status", "b.wd"]).ok(), home.wrapdisk(["status", b.text()]).ok());
    a.unmount();
    b.unmount();
}

#[test]
fn a_set_is_shown_with_its_disks() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    home.create("gone.wd", "1M", &[]);
    fs::remove_file(home.path("gone.wd")).unwrap();
    let set = home.json(["set", "show", "DEFAULT"]);
    let key = home.json(["key", "show", "disk-kek"]);
    assert_eq!(members(&set), ["name", "id", "identity", "properties", "disks"]);
    assert_eq!((text(&set, "name"), &set["properties"]["activeKey"]["keyUrl"]), ("default", &key["kid"]));
    let uuid = home.json(["info", "vm.wd"])["uuid"].clone();
    let vm = json!({ "uuid": uuid, "path": home.text("vm.wd"), "kids": [key["kid"]] });
    assert!(set["disks"].as_array().unwrap().contains(&vm), "{set}");
    let listed = home.json(["set", "list"]);
    let mut same = set.clone();
    same.as_object_mut().unwrap().remove("disks");
    assert_eq!(listed, json!([same]));

    let said = home.wrapdisk(["set", "show", "default"]).ok();
    assert!(
        said.starts_with(&format!("name:           default\nid:             {}\n", text(&set, "id"))),
        "{said}"
    );
    assert!(
        said.contains(&format!("\n  {}\n", home.text("vm.wd"))) || said.ends_with(home.text("vm.wd")),
        "{said}"
    );
    assert!(said.contains(&format!("  {}  (missing)", home.text("gone.wd"))), "{said}");
    let table = home.wrapdisk(["set", "list"]).ok();
    assert!(table.starts_with("NAME     ACTIVE KEY") && table.ends_with("  3      ok"), "{table}");
    let err = home.wrapdisk(["set", "show", "prod"]).fails(1);
    assert!(err.starts_with("wrapdisk: set \"prod\": no such set in "), "{err}");
}
