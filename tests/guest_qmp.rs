//! Does the QMP client say to a real QEMU what it should, and does every conversation end by its deadline, whatever is at
//! the other end of the socket?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guest_support;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_support::{Qemu, soon};
use wrapdisk::error::ErrorKind;
use wrapdisk::guard::qmp::{Qmp, RunState};

#[test]
fn a_real_qemu_is_stopped_continued_and_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, qmp) = (dir.path().join("a disk.img"), dir.path().join("qmp"));
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let blockdev = format!("driver=file,filename={},node-name=d,cache.direct=off", disk.display());
    let drive = format!("if=none,format=raw,id=e,file={}", disk.display());
    for how in [
        ["-blockdev", &blockdev, "-device", "virtio-blk,drive=d"],
        ["-drive", &drive, "-device", "virtio-blk,drive=e"],
    ] {
        let mut qemu = Qemu::start(&qmp, &[&["-S"], &how[..]].concat());
        let mut monitor = qemu.monitor();
        assert_eq!(monitor.pid(), Some(qemu.child.id()));
        assert!(monitor.files().unwrap().contains(&disk), "{:?}", monitor.files());
        assert_eq!(monitor.state().unwrap(), RunState::Other); // prelaunch
        monitor.cont().unwrap();
        assert_eq!(monitor.state().unwrap(), RunState::Running);
        monitor.stop().unwrap();
        assert_eq!(monitor.state().unwrap(), RunState::Paused);
        monitor.powerdown().unwrap();
        monitor.cont().unwrap();
        drop(monitor);
        // One client at a time: the next conversation works when the one before is over.
        qemu.monitor().quit().unwrap();
        qemu.ends();
        let gone = Qmp::connect(&qmp, soon()).unwrap_err();
        assert!(matches!(gone.kind(), ErrorKind::NotFound | ErrorKind::Io), "{}", gone.chain());
    }
}

#[test]
fn a_monitor_that_another_client_keeps_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::start(&dir.path().join("qmp"), &["-S"]);
    let _holder = qemu.monitor();
    let start = Instant::now();
    // QEMU queues one or two, who hear nothing, and the kernel refuses the rest.
    for _ in 0..4 {
        let refused = Qmp::connect(&qemu.qmp, Instant::now() + Duration::from_millis(200)).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Busy | ErrorKind::Unreachable), "{}", refused.chain());
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// Something else than QEMU behind a socket: what it does with one client.
fn behind(dir: &Path, name: &str, act: impl Fn(UnixStream) + Send + 'static) -> PathBuf {
    let path = dir.join(name);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(act));
    path
}

const GREETING: &[u8] = b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n";

#[test]
fn whatever_is_behind_the_socket_the_conversation_ends_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let repeat = |text: &'static [u8]| move |mut peer: UnixStream| while peer.write_all(text).is_ok() {};
    let once = |text: Vec<u8>| {
        move |mut peer: UnixStream| {
            let _ = peer.write_all(&text);
            let _ = BufReader::new(peer).lines().count(); // until the client hangs up
        }
    };
    let deep = [b"{\"id\":0,\"return\":".as_slice(), &b"[".repeat(100_000), b"\n"].concat();
    let late = |mut peer: UnixStream| {
        for byte in GREETING {
            std::thread::sleep(Duration::from_millis(50));
            if peer.write_all(&[*byte]).is_err() {
                break;
            }
        }
    };
    let sockets = [
        (behind(dir.path(), "silent", once(Vec::new())), ErrorKind::Unreachable),
        (behind(dir.path(), "closes", |_| ()), ErrorKind::Io),
        (
            behind(dir.path(), "one endless line", repeat(b"{\"QMP\":\"aaaaaaaaaaaaaaaaaaaaaaaa")),
            ErrorKind::InvalidInput,
        ),
        (
            behind(dir.path(), "http", once(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
            ErrorKind::InvalidInput,
        ),
        (behind(dir.path(), "no greeting", once(b"{\"return\":{}}\n".to_vec())), ErrorKind::InvalidInput),
        (behind(dir.path(), "not text", once(vec![0xFF, 0, b'\n'])), ErrorKind::InvalidInput),
        (behind(dir.path(), "greets only", once(GREETING.to_vec())), ErrorKind::Unreachable),
        (behind(dir.path(), "deep", once([GREETING, &deep].concat())), ErrorKind::InvalidInput),
        (behind(dir.path(), "drips", late), ErrorKind::Unreachable),
        (
            behind(dir.path(), "nothing in it", once([GREETING, b"{\"id\":0}\n"].concat())),
            ErrorKind::InvalidInput,
        ),
        (
            behind(
                dir.path(),
                "refuses",
                once(
                    [
                        GREETING,
                        b"{\"id\":0,\"error\":{\"class\":\"GenericError\",\"desc\":\"no \\u001b[31m\"}}\n",
                    ]
                    .concat(),
                ),
            ),
            ErrorKind::Other,
        ),
        (
            behind(dir.path(), "events without end", |mut peer| {
                let _ = peer.write_all(GREETING);
                while peer.write_all(b"{\"event\":\"NIC_RX_FILTER_CHANGED\",\"timestamp\":{}}\n").is_ok() {}
            }),
            ErrorKind::Unreachable,
        ),
    ];
    for (socket, kind) in sockets {
        let start = Instant::now();
        let error = Qmp::connect(&socket, start + Duration::from_millis(500)).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(!error.chain().contains('\u{1b}'), "{}", error.chain());
        assert!(start.elapsed() < Duration::from_secs(10), "{}: {:?}", socket.display(), start.elapsed());
    }
    let missing = Qmp::connect(&dir.path().join("missing"), soon()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let long = Qmp::connect(&dir.path().join("x".repeat(200)), soon()).unwrap_err();
    assert_eq!(long.kind(), ErrorKind::InvalidInput, "{}", long.chain());
}
