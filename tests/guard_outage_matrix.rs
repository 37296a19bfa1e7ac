//! Is an outage of the vault no revocation: does I/O on a live mount go on inside its grace whatever kind of outage it is, do new
//! mounts fail with words and exit code 4, is recovery automatic, and does `--outage-grace 0` end I/O at once? And is a refusal
//! behind the same faulty way still one?
//!
//! A real `vault serve`, before it a gateway that answers what a test wants, before that a proxy that breaks connections.
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod azure_support;
mod serve_support;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use azure_support::{Answer, Certificate, Fault, Proxy, Request, Server};
use serve_support::{Client, Served};
use support::{Home, Mount, eventually, noise};
use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::local::{NewKey, RsaBits};

/// What the vault says itself, with the host under which the gateway was asked.
fn pass_on(vault: &Client, real: &str, request: &Request) -> Answer {
    let body = String::from_utf8(request.body.clone()).unwrap();
    let body = (request.method != "GET").then_some(body.as_str());
    let answer = vault.raw(&request.method, &request.path, body, &[]);
    Answer::new(answer.status, answer.text.replace(real, request.header("host").unwrap()))
}

struct Scene {
    served: Served,
    gateway: Server,
    proxy: Proxy,
    impostor: Server,
    user: Home,
}

impl Scene {
    fn new() -> Self {
        let served = Served::new();
        let admin = served.vault.admin("test");
        served.vault.create_key("disk-kek", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
        let gateway = Server::new(Certificate::Good);
        let proxy = Proxy::to(gateway.address);
        let scene = Self {
            served,
            gateway,
            proxy,
            impostor: Server::new(Certificate::UnknownIssuer),
            user: Home::ready(),
        };
        scene.well();
        let url = format!("https://{}", scene.proxy.host());
        let authority = format!("https://{}", scene.gateway.address);
        let (ca, secret) = (scene.gateway.path("ca.pem"), scene.gateway.path("secret"));
        let add = ["vault", "add", "office", &url, "--local-server", "--ca-file", ca.to_str().unwrap()];
        let who = ["--credential", "client-secret", "--client-id", "the-client", "--tenant", "the-tenant"];
        let how = ["--secret-file", secret.to_str().unwrap(), "--authority", &authority];
        scene.user.wrapdisk([&add[..], &who[..], &how[..]].concat()).ok();
        scene.user.wrapdisk(["set", "create", "prod", "--key-url", &format!("{url}/keys/disk-kek")]).ok();
        scene
    }

    fn well(&self) {
        let (vault, real) = (self.served.officer.clone(), format!("127.0.0.1:{}", self.served.port));
        self.gateway.answers(move |request| pass_on(&vault, &real, request));
        self.proxy.lead_to(self.gateway.address);
        self.proxy.set(Fault::None);
    }

    /// Breaks the way to the vault.
    fn outage(&self, kind: &str) {
        match kind {
            "refused" => {
                // Somebody listened there a moment ago.
                let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
                self.proxy.lead_to(gone);
            }
            "reset" => self.proxy.set(Fault::Reset),
            "hang" => self.proxy.set(Fault::Hang),
            "429" => self.gateway.always(Answer::error(429, "Throttled", None).with("Retry-After", "2")),
            "500" => self.gateway.always(Answer::error(500, "InternalServerError", None)),
            "garbage" => self.gateway.always(Answer::new(403, "<html>Please sign in to the hotel</html>")),
            "bad TLS" => self.proxy.lead_to(self.impostor.address),
            other => panic!("{other}"),
        }
    }
}

fn state(mount: &Mount<'_>) -> (String, String) {
    let guard = mount.status()["guard"].clone();
    let word = |name: &str| guard[name].as_str().unwrap_or_default().to_owned();
    let cause = if guard["cause"].is_null() { word("why") } else { word("cause") };
    (word("state"), cause)
}

#[track_caller]
fn comes_to(mount: &Mount<'_>, what: &str, expected: (&str, &str)) {
    eventually(&format!("{what}: {expected:?}"), || {
        let (state, cause) = state(mount);
        ((state.as_str(), cause.as_str()) == expected).then_some(())
    });
}

#[test]
fn while_a_vault_is_out_of_reach_io_goes_on_new_mounts_fail_with_words_and_all_comes_back_by_itself() {
    outages(&["refused", "reset", "hang", "bad TLS"]);
}

#[test]
fn while_a_vault_answers_nonsense_io_goes_on_new_mounts_fail_with_words_and_all_comes_back_by_itself() {
    outages(&["429", "500", "garbage"]);
}

fn outages(kinds: &[&str]) {
    let s = Scene::new();
    for name in ["vm.wd", "strict.wd", "new.wd"] {
        s.user.create(name, "1M", &["--set", "prod"]);
    }
    let mount = s.user.mount("vm.wd", &["--probe-interval", "5s"]);
    let strict = s.user.mount("strict.wd", &["--probe-interval", "5s", "--outage-grace", "0"]);
    let open = |mount: &Mount<'_>| File::options().read(true).write(true).open(&mount.file).unwrap();
    let (file, strict_file) = (open(&mount), open(&strict));
    strict_file.write_all_at(b"strict", 0).unwrap();
    strict_file.sync_all().unwrap();
    std::fs::create_dir(s.user.path("new")).unwrap();
    for (n, kind) in kinds.iter().enumerate() {
        s.outage(kind);
        comes_to(&mount, kind, ("degraded", "outage"));
        let content = noise(n as u64, 20_000);
        file.write_all_at(&content, 4096).unwrap();
        file.sync_all().unwrap();
        let mut found = vec![0; content.len()];
        file.read_exact_at(&mut found, 4096).unwrap();
        assert!(found == content, "{kind}: I/O goes on");
        let left = mount.status()["guard"]["graceLeft"].as_u64().unwrap();
        assert!((23 * 3600..24 * 3600).contains(&left), "{kind}: {left} s of grace");
        comes_to(&strict, kind, ("revoked", "outage"));
        assert_eq!(
            strict_file.read_at(&mut [0; 6], 0).unwrap_err().raw_os_error(),
            Some(libc::EIO),
            "{kind}"
        );

        let refused = s.user.wrapdisk(["mount", "new.wd", "new"]).fails(4);
        assert!(refused.contains("127.0.0.1") && refused.len() < 2000, "{kind}: {refused}");

        s.well();
        comes_to(&mount, kind, ("ready", ""));
        comes_to(&strict, kind, ("ready", ""));
        let mut found = [0; 6];
        strict_file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"strict", "{kind}");
    }
    // The same way, and the vault says no.
    let key = KeyRef::parse("disk-kek").unwrap();
    let enable = |on| s.served.vault.set_enabled(&key, on, &s.served.vault.admin("test")).unwrap();
    enable(false);
    comes_to(&mount, "disabled", ("revoked", "disabled"));
    assert_eq!(file.read_at(&mut [0; 6], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    enable(true);
    comes_to(&mount, "enabled", ("ready", ""));
    file.read_exact_at(&mut [0; 6], 0).unwrap();
    drop((file, strict_file));
    strict.unmount();
    mount.unmount();
}

#[test]
fn a_mount_waits_for_a_vault_that_is_not_there_yet_when_it_is_told_to() {
    let s = Scene::new();
    s.user.create("vm.wd", "1M", &["--set", "prod"]);
    s.outage("refused");
    std::fs::create_dir(s.user.path("place")).unwrap();
    let start = std::time::Instant::now();
    s.user.wrapdisk(["mount", "vm.wd", "place", "--wait-for-vault", "1s"]).fails(4);
    assert!(start.elapsed() >= std::time::Duration::from_secs(1), "it gave up at once");
    std::thread::scope(|scope| {
        let mount = scope.spawn(|| s.user.wrapdisk(["mount", "vm.wd", "place", "--wait-for-vault", "5m"]));
        let asked = s.proxy.taken.lock().map(|taken| *taken).unwrap();
        eventually("it tries", || (*s.proxy.taken.lock().unwrap() > asked + 1).then_some(()));
        assert!(!mount.is_finished());
        s.well();
        mount.join().unwrap().ok();
    });
    s.user.adopt(&s.user.path("place")).unmount();
    // A refusal is none that passes.
    let key = KeyRef::parse("disk-kek").unwrap();
    s.served.vault.set_enabled(&key, false, &s.served.vault.admin("test")).unwrap();
    s.user.wrapdisk(["mount", "vm.wd", "place", "--wait-for-vault", "5m"]).fails(3);
}
