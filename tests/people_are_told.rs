//! Does whoever sits at a desktop, and whoever is logged in where the mount is root's, learn at once that a disk has stopped
//! and goes on? Over a real session bus, with the real notify-send; only the server that would draw the bubble is the test's.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod daemon_support;
mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use daemon_support::Foreground;
use serde_json::Value;
use support::{Home, eventually};

/// org.freedesktop.Notifications, as its specification has it: prints what it is told.
const SERVER: &str = r#"
import dbus, dbus.service, json, sys
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib
DBusGMainLoop(set_as_default=True)
NAME = "org.freedesktop.Notifications"
class Server(dbus.service.Object):
    @dbus.service.method(NAME, in_signature="susssasa{sv}i", out_signature="u")
    def Notify(self, app, replaces, icon, summary, body, actions, hints, expires):
        print(json.dumps({"app": app, "summary": summary, "body": body, "urgency": int(hints["urgency"])}), flush=True)
        return 1
    @dbus.service.method(NAME, out_signature="ssss")
    def GetServerInformation(self):
        return ("test", "test", "1", "1.2")
    @dbus.service.method(NAME, out_signature="as")
    def GetCapabilities(self):
        return ["body", "body-markup"]
bus = dbus.SessionBus()
name = dbus.service.BusName(NAME, bus)
Server(bus, "/org/freedesktop/Notifications")
print("{}", flush=True)
GLib.MainLoop().run()
"#;

struct Desktop {
    bus: Child,
    server: Child,
    address: String,
    told: Receiver<Value>,
}

impl Desktop {
    fn start() -> Self {
        let mut command = Command::new("dbus-daemon");
        command.args(["--session", "--nofork", "--print-address"]).stderr(Stdio::null());
        let mut bus = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        // The system's python: its modules come from the distribution.
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", SERVER]).env("DBUS_SESSION_BUS_ADDRESS", &address);
        let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let (send, told) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = send.send(serde_json::from_str(&line).unwrap());
            }
        });
        let desktop = Self { bus, server, address, told };
        assert_eq!(desktop.next(), serde_json::json!({}));
        desktop
    }

    fn next(&self) -> Value {
        self.told.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.bus] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_desktop_and_the_terminals_hear_of_the_fence_and_of_its_end() {
    let desktop = Desktop::start();
    let home = Home::ready();
    home.create("vm <b>.wd", "1M", &[]);
    // Nobody is logged in where tests run, so wall(1) itself would have nobody to tell.
    let (bin, walls) = (home.path("bin"), home.path("walls"));
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("wall"), format!("#!/bin/sh\necho \"$@\" >> {}\n", walls.display())).unwrap();
    std::fs::set_permissions(bin.join("wall"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let place = home.path("vm <b>.mnt");
    std::fs::create_dir(&place).unwrap();
    let mut command = home.command(["mount", "--foreground", "vm <b>.wd", place.to_str().unwrap()]);
    command.env("DBUS_SESSION_BUS_ADDRESS", &desktop.address);
    let path = std::env::var("PATH").unwrap();
    let mount = Foreground::run(command.env("PATH", format!("{}:{path}", bin.display())), &place);
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    let told = eventually("the fence", || {
        Some(desktop.next()).filter(|t| t["summary"] == "Disk revoked: I/O has stopped")
    });
    assert_eq!((&told["app"], &told["urgency"]), (&Value::from("wrapdisk"), &Value::from(2)));
    let body = told["body"].as_str().unwrap();
    assert!(body.contains("vm &lt;b&gt;.mnt"), "no markup: {body}");
    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    let told = eventually("its end", || Some(desktop.next()).filter(|t| t["summary"] == "Disk resumed"));
    assert_eq!(told["urgency"], 1);
    eventually("the terminals", || {
        let said = std::fs::read_to_string(&walls).unwrap_or_default();
        let (stopped, resumed) =
            (said.find("-- Disk revoked: I/O has stopped:"), said.find("-- Disk resumed:"));
        (stopped.is_some() && resumed > stopped).then_some(())
    });
    drop(mount);
}
