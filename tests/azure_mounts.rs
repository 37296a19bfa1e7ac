//! Does a disk work whose key is in another machine's vault: from `vault add` to a mount, and no longer when the vault says
//! no or is away? A real `vault serve` over another state folder, and the program as a user runs it.
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod azure_support;
mod memory_support;
mod serve_support;
mod support;

use std::io::Write;
use std::path::PathBuf;

use azure_support::{Fault, Proxy};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use memory_support::{list, needles, search};
use serve_support::Served;
use support::Home;
use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::local::{CredentialKind, Grant, IdentityKind, NewKey, Permission, RsaBits};

/// A served vault with one key and an application that may not use it yet, and a user elsewhere who knows of both.
struct Scene {
    served: Served,
    user: Home,
    application: uuid::Uuid,
    secret: String,
}

impl Scene {
    fn new() -> Self {
        let served = Served::new();
        let admin = served.vault.admin("test");
        served.vault.create_key("disk-kek", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
        let application = served.vault.create_identity("prod", IdentityKind::User, &admin).unwrap();
        let kind = CredentialKind::ClientSecret;
        let secret = served.vault.add_credential(application, kind, None, None, &admin).unwrap();
        let secret = String::from_utf8(secret.expose().to_vec()).unwrap();
        let user = Home::ready();
        let scene = Self { served, user, application, secret };
        scene.secret_file("prod.secret", &scene.secret);
        scene
    }

    fn secret_file(&self, name: &str, secret: &str) -> &'static str {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.user.path(name), secret).unwrap();
        std::fs::set_permissions(self.user.path(name), PermissionsExt::from_mode(0o600)).unwrap();
        self.user.text(name)
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.served.port)
    }

    fn ca(&self) -> PathBuf {
        self.served.home.path("ca.pem")
    }

    fn grant(&self, may: &[Permission]) {
        let admin = self.served.vault.admin("test");
        let what = Grant::Permissions(may.to_vec());
        self.served.vault.grant(self.application, what, Some("disk-kek"), &admin).unwrap();
    }

    fn set_enabled(&self, enabled: bool) {
        let key = KeyRef::parse("disk-kek").unwrap();
        self.served.vault.set_enabled(&key, enabled, &self.served.vault.admin("test")).unwrap();
    }

    #[track_caller]
    fn add(&self, name: &str, secret_file: &str, more: &[&str]) {
        let (url, ca) = (self.url(), self.ca());
        let id = format!("{}.vault.localhost", self.served.vault.id());
        let args = ["vault", "add", name, &url, "--local-server", "--ca-file", ca.to_str().unwrap()];
        let who = ["--credential", "client-secret", "--client-id", "prod", "--secret-file", secret_file];
        let alias = ["--alias", &id];
        self.user.wrapdisk([&args[..], &who[..], &alias[..], more].concat()).ok();
    }
}

#[test]
fn a_disk_under_a_key_elsewhere_mounts_until_the_vault_says_no() {
    let s = Scene::new();
    s.add("office", "prod.secret", &[]);
    s.grant(&[Permission::Get, Permission::WrapKey, Permission::UnwrapKey]);
    let key_url = format!("{}/keys/disk-kek", s.url());
    s.user.wrapdisk(["set", "create", "prod", "--key-url", &key_url]).ok();
    let shown = s.user.json(["set", "show", "prod"]);
    assert_eq!(shown["properties"]["activeKey"]["sourceVault"]["id"], s.url());
    assert_eq!(shown["properties"]["rotationToLatestKeyVersionEnabled"], true);
    let shown = s.user.wrapdisk(["set", "show", "prod"]).ok();
    assert!(shown.contains("office at https://") && shown.contains("application prod"), "{shown}");
    s.user.create("vm.wd", "1M", &["--set", "prod"]);
    let info = s.user.json(["info", "vm.wd"]);
    let kid = format!("https://{}.vault.localhost/keys/disk-kek/", s.served.vault.id());
    assert!(info.to_string().contains(&kid), "the header names the host that stays: {info}");
    let mount = s.user.mount("vm.wd", &[]);
    let mut disk = std::fs::File::options().write(true).open(&mount.file).unwrap();
    disk.write_all(b"across the network").unwrap();
    drop(disk);
    mount.unmount();

    s.set_enabled(false);
    std::fs::create_dir_all(s.user.path("vm.wd.mnt")).unwrap();
    let refused = s.user.wrapdisk(["mount", "vm.wd", "vm.wd.mnt"]).fails(3);
    assert!(refused.contains("not allowed on a disabled key"), "{refused}");
    s.set_enabled(true);
    let mount = s.user.mount("vm.wd", &[]);
    assert!(std::fs::read(&mount.file).unwrap().starts_with(b"across the network"));
    mount.unmount();

    // Disks of the embedded vault do not need the other one.
    let Scene { mut served, user, .. } = s;
    served.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(served.ended(), Some(0));
    let away = user.wrapdisk(["mount", "vm.wd", "vm.wd.mnt"]).fails(4);
    assert!(away.contains("does a server listen there"), "{away}");
    user.create("local.wd", "1M", &[]);
    user.mount("local.wd", &[]).unmount();
}

#[test]
fn what_is_missing_is_said_in_words_with_the_command_that_mends_it() {
    let s = Scene::new();
    s.add("office", "prod.secret", &[]);
    let test = |name: &str, more: &[&str]| s.user.wrapdisk([&["vault", "test", name], more].concat());
    let key = &["--key", "disk-kek"][..];
    assert!(test("office", &[]).ok().contains("it answers and knows us"));
    // Nothing, then one permission after the other.
    let said = test("office", key).fails(3);
    assert!(
        said.contains("it takes the permission get") && said.contains("wrapdisk vault grant prod"),
        "{said}"
    );
    let set = ["set", "create", "prod", "--key-url", &format!("{}/keys/disk-kek", s.url())];
    assert!(s.user.wrapdisk(set).fails(3).contains("KeyVaultAccessForbidden"));
    s.grant(&[Permission::Get]);
    assert!(test("office", key).fails(3).contains("it takes the permission wrapKey"));
    s.grant(&[Permission::Get, Permission::WrapKey]);
    assert!(test("office", key).fails(3).contains("it takes the permission unwrapKey"));
    s.grant(&[Permission::Get, Permission::WrapKey, Permission::UnwrapKey]);
    let said = test("office", key).ok();
    assert!(said.contains("RSA-2048, enabled") && said.contains("came back as it was"), "{said}");
    let report = s.user.json(["vault", "test", "office", "--key", "disk-kek"]);
    assert_eq!(report["ok"], true);
    assert_eq!(report["checks"].as_array().unwrap().len(), 3, "{report}");
    s.set_enabled(false);
    let said = test("office", key).fails(3);
    assert!(said.contains("wrapdisk key enable disk-kek"), "{said}");
    assert!(s.user.wrapdisk(set).fails(3).contains("KeyVaultKeyNotEnabled"));
    s.set_enabled(true);
    // A key that is not there, a secret that is wrong, a file that others can read, a server that is somebody else.
    assert!(test("office", &["--key", "disk-kek2"]).fails(3).contains("does not have keys get permission"));
    s.add("wrong", s.secret_file("wrong.secret", "not-the-secret-not-the-secret-not-it"), &[]);
    let said = test("wrong", &[]).fails(3);
    assert!(said.contains("is the secret the application's"), "{said}");
    let ca = s.ca();
    let foreign = s.user.text("foreign.pem");
    let pem = rcgen_authority();
    std::fs::write(foreign, pem).unwrap();
    let moved = ["vault", "add", "foreign", &s.url(), "--local-server", "--ca-file", foreign];
    let who = ["--credential", "client-secret", "--client-id", "prod", "--secret-file", "prod.secret"];
    s.user.wrapdisk([&moved[..], &who[..]].concat()).ok();
    assert!(test("foreign", &[]).fails(4).contains("give the authority that signed it"));
    assert!(ca.exists());
    // Nobody's secret is shown, not even to somebody who looks for a fault.
    let loud = test("office", &["--key", "disk-kek", "-vv"]);
    let text = format!("{}{}", loud.out, loud.err);
    assert!(text.contains("debug"), "{text}");
    for secret in [s.secret.as_str(), "Bearer ", "access_token"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn what_came_over_the_network_does_not_stay_in_the_memory_of_a_mount() {
    let s = Scene::new();
    s.add("office", "prod.secret", &[]);
    s.grant(&[Permission::Get, Permission::WrapKey, Permission::UnwrapKey]);
    s.user.wrapdisk(["set", "create", "prod", "--key-url", &format!("{}/keys/disk-kek", s.url())]).ok();
    s.user.create("vm.wd", "1M", &["--set", "prod"]);
    s.user.wrapdisk(["volume-key", "vm.wd", "--output", "vm.key", "--yes"]).ok();
    let key = std::fs::read(s.user.path("vm.key")).unwrap();
    assert_eq!(key.len(), 64);
    let mount = s.user.mount("vm.wd", &[]);
    let raw = needles("the data key", &key);
    // As the vault sends it, at every offset that base64 of a longer text could give it.
    let text = URL_SAFE_NO_PAD.encode(&key);
    let mut gone = needles("the data key on the wire", text.as_bytes());
    gone.extend(needles("the client secret", s.secret.as_bytes()));
    let pid = mount.pid.to_string();
    let hits = search(&pid, &gone);
    assert!(hits.is_empty(), "{}", list(&hits));
    let hits = search(&pid, &raw);
    assert!(!hits.is_empty(), "the cipher has it: the search works");
    let loose: Vec<_> = hits.iter().filter(|hit| !hit.mapping.is_undumped()).collect();
    assert!(loose.is_empty(), "{}", list(loose));
    mount.unmount();
}

#[test]
fn a_disk_opens_through_a_network_that_recovers_and_says_which_that_does_not() {
    let s = Scene::new();
    s.grant(&[Permission::Get, Permission::WrapKey, Permission::UnwrapKey]);
    let proxy = Proxy::to(([127, 0, 0, 1], s.served.port).into());
    let url = format!("https://{}", proxy.host());
    let (id, ca) = (format!("{}.vault.localhost", s.served.vault.id()), s.ca());
    let args =
        ["vault", "add", "far", &url, "--local-server", "--alias", &id, "--ca-file", ca.to_str().unwrap()];
    let who = ["--credential", "client-secret", "--client-id", "prod", "--secret-file", "prod.secret"];
    s.user.wrapdisk([&args[..], &who[..]].concat()).ok();
    s.user.wrapdisk(["set", "create", "prod", "--key-url", &format!("{url}/keys/disk-kek")]).ok();
    s.user.create("vm.wd", "1M", &["--set", "prod"]);
    std::fs::create_dir_all(s.user.path("vm.wd.mnt")).unwrap();
    for fault in [Fault::Reset, Fault::CutAfter(200)] {
        proxy.set(fault);
        let before = *proxy.taken.lock().unwrap();
        let said = s.user.wrapdisk(["mount", "vm.wd", "vm.wd.mnt"]).fails(4);
        assert!(said.contains("the vault could not be asked"), "{said}");
        assert!(*proxy.taken.lock().unwrap() >= before + 3, "it was tried three times");
        proxy.set(Fault::None);
        s.user.mount("vm.wd", &[]).unmount();
    }
}

fn rcgen_authority() -> String {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn entries_are_added_listed_and_removed_but_not_from_under_a_set() {
    let s = Scene::new();
    s.add("office", "prod.secret", &[]);
    let azure = ["vault", "add", "cloud", "https://demo.vault.azure.net/", "--client-id", "0-a"];
    s.user.wrapdisk(azure).ok();
    let list = s.user.json(["vault", "list"]);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["local", "cloud", "office"]);
    assert_eq!(list[1]["endpoint"], "https://demo.vault.azure.net");
    assert_eq!(list[1]["credential"], serde_json::json!({ "kind": "managed-identity", "client_id": "0-a" }));
    let secret_file = s.user.path("prod.secret");
    assert_eq!(
        list[2]["credential"]["secret"]["file"],
        secret_file.to_str().unwrap(),
        "where it is, in full"
    );
    let database = std::fs::read(s.user.path("home/state/sets.db")).unwrap();
    assert!(!database.windows(s.secret.len()).any(|w| w == s.secret.as_bytes()), "never the secret");
    assert!(s.user.wrapdisk(azure).fails(1).contains("exists"));

    s.grant(&[Permission::Get, Permission::WrapKey, Permission::UnwrapKey]);
    let url = format!("{}/keys/disk-kek", s.url());
    s.user.wrapdisk(["set", "create", "prod", "--key-url", &url, "--vault", "office"]).ok();
    assert!(s.user.wrapdisk(["vault", "remove", "office"]).fails(1).contains("in use by the sets: prod"));
    s.user.wrapdisk(["vault", "remove", "cloud"]).ok();
    assert!(s.user.wrapdisk(["vault", "remove", "cloud"]).fails(1).contains("no such vault"));
    s.user.wrapdisk(["vault", "remove", "local"]).fails(2);
    // What makes no sense is refused before anything is stored.
    for (args, code) in [
        (&["x", "http://demo.vault.azure.net"][..], 2),
        (&["x", "https://demo.vault.azure.net", "--credential", "client-secret"], 2),
        (&["x", "https://h", "--credential", "client-secret", "--client-id", "a", "--secret-file", "f"], 2),
        (&["x", "https://h", "--secret-file", "prod.secret"], 2),
        (&["local", "https://h"], 1),
        (&["x", "https://h", "--ca-file", "prod.secret"], 1),
        (&["x", "https://h", "--ca-file", "absent"], 1),
    ] {
        let done = s.user.wrapdisk([&["vault", "add"], args].concat());
        assert_eq!(done.code(), code, "{args:?}: {}", done.err);
    }
    assert_eq!(s.user.json(["vault", "list"]).as_array().unwrap().len(), 2);
    let unknown = ["set", "create", "p2", "--key-url", "https://nowhere.example/keys/k"];
    assert!(s.user.wrapdisk(unknown).fails(1).contains("vault add NAME https://nowhere.example"));
}
