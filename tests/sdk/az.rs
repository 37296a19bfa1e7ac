//! Does the Azure command line work with our vault as far as it goes without a subscription?
//!
//! `az` has no notion of a vault outside Azure, but of clouds outside Azure's own: one is registered whose directory and
//! vaults are ours. What cannot work is in docs/CONFORMANCE.md.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::steps::Step;
use crate::support::{Done, Home, finish, run};
use crate::vault::Serving;

const STEPS: [&str; 15] = [
    "create",
    "import",
    "get",
    "list",
    "versions",
    "update",
    "encrypt and decrypt",
    "sign and verify",
    "disable",
    "rotate",
    "rotation policy",
    "delete",
    "recover",
    "purge",
    "backup and restore",
];

/// Every step.
pub(crate) fn steps() -> &'static [Step] {
    static STEPS_DONE: OnceLock<Vec<Step>> = OnceLock::new();
    STEPS_DONE.get_or_init(|| {
        let mut az = Az::signed_in();
        let mut run = |name: &str| {
            az.sent.clear();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| az.step(name)));
            let error = done.is_err().then(|| "a panic; see standard error".to_owned());
            let (sdk, credentials) = ("az".to_owned(), "client secret".to_owned());
            let requests = std::mem::take(&mut az.sent);
            Step { sdk, credentials, step: name.to_owned(), ok: error.is_none(), error, requests }
        };
        STEPS.map(&mut run).into()
    })
}

#[test]
fn the_azure_command_line_works() {
    let failed: Vec<_> = steps().iter().filter(|step| !step.ok).map(|step| &step.step).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

struct Az {
    serving: Serving,
    sent: Vec<(String, String, u16)>,
}

impl Az {
    fn signed_in() -> Self {
        let serving = Serving::start();
        let az = Self { serving, sent: Vec::new() };
        let (url, who) = (az.serving.url(), az.serving.identities["officer"].clone());
        let suffix = format!(".vault.localhost:{}", az.serving.port());
        // The directory hands out tokens for the vault only, so that is what the cloud's resource id must be.
        az.plain(&[
            "cloud",
            "register",
            "--name",
            "wrapdisk",
            "--endpoint-active-directory",
            &url,
            "--endpoint-active-directory-resource-id",
            "https://vault.azure.net",
            "--endpoint-resource-manager",
            &url,
            "--suffix-keyvault-dns",
            &suffix,
            "--skip-endpoint-discovery",
        ]);
        az.plain(&["cloud", "set", "--name", "wrapdisk"]);
        az.plain(&["config", "set", "core.instance_discovery=false"]);
        let tenant = az.serving.tenant.clone();
        az.plain(&[
            "login",
            "--service-principal",
            "--username",
            &who.client_id,
            "--password",
            &who.secret,
            "--tenant",
            &tenant,
            "--skip-subscription-discovery",
            "--allow-no-subscriptions",
        ]);
        az
    }

    fn home(&self) -> &Home {
        self.serving.home()
    }

    /// Runs `az` where the vault's names resolve, with its own settings and our CA.
    fn run(&self, args: &[&str]) -> Done {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/az/bin/az");
        let mut command: Command = self.serving.among_names();
        command.arg(program).args(args).args(["--output", "json"]);
        command.env("AZURE_CONFIG_DIR", self.home().path("az")).env("AZURE_CORE_COLLECT_TELEMETRY", "0");
        command.env("AZURE_CORE_NO_COLOR", "1").env("REQUESTS_CA_BUNDLE", self.serving.ca());
        finish(&mut command)
    }

    #[track_caller]
    fn plain(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// `az keyvault key ...`, with what it sent.
    fn key(&mut self, args: &[&str]) -> Done {
        let done = self.run(&[&["keyvault", "key"], args, &["--debug"]].concat());
        self.sent.extend(requests(&done.err));
        done
    }

    #[track_caller]
    fn json(&mut self, args: &[&str]) -> Value {
        let out = self.key(args).ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// A refusal, by the code that `az` shows.
    #[track_caller]
    fn refused(&mut self, args: &[&str], code: &str) {
        let done = self.key(args);
        assert!(!done.status.success() && done.err.contains(code), "no {code}: {}{}", done.out, done.err);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home().path(name)
    }

    fn step(&mut self, step: &str) {
        match step {
            "create" => self.create(),
            "import" => self.import(),
            "get" => self.get(),
            "list" => self.list(),
            "versions" => self.versions(),
            "update" => self.update(),
            "encrypt and decrypt" => self.encrypt_decrypt(),
            "sign and verify" => self.sign_verify(),
            "disable" => self.disable(),
            "rotate" => self.rotate(),
            "rotation policy" => self.rotation_policy(),
            "delete" => self.delete(),
            "recover" => self.recover(),
            "purge" => self.purge(),
            "backup and restore" => self.backup_restore(),
            other => panic!("no step {other}"),
        }
    }

    fn kek(&self) -> String {
        format!("{}/keys/kek", self.serving.url())
    }

    /// The arguments for a key of this name.
    fn named(&self) -> impl Fn(&str) -> [String; 4] + use<> {
        let vault = self.serving.id.clone();
        move |name| ["--vault-name", &vault, "--name", name].map(str::to_owned)
    }

    fn create(&mut self) {
        let named = self.named();
        let key = self
            .json(&with(&["create", "--kty", "RSA", "--size", "2048", "--tags", "env=test"], &named("kek")));
        assert_eq!((&key["key"]["kty"], &key["tags"]["env"]), (&"RSA".into(), &"test".into()));
        self.json(&with(&["create", "--kty", "RSA", "--size", "2048", "--disabled"], &named("off")));
        self.refused(&with(&["create", "--kty", "EC"], &named("ec")), "BadParameter");
    }

    fn import(&mut self) {
        let named = self.named();
        let pem = self.file("mine.pem");
        run("openssl", ["genrsa", "-out", pem.to_str().unwrap(), "2048"]);
        let args = ["import", "--pem-file", pem.to_str().unwrap()];
        let key = self.json(&with(&args, &named("mine")));
        assert_eq!(key["key"]["kty"], "RSA");
    }

    fn get(&mut self) {
        let by_id = self.kek();
        let named = self.named();
        let key = self.json(&with(&["show"], &named("kek")));
        let same = self.json(&["show", "--id", &by_id]);
        assert_eq!(key["key"]["n"], same["key"]["n"]);
        assert_eq!(self.json(&["show", "--id", key["key"]["kid"].as_str().unwrap()]), key);
        self.refused(&with(&["show"], &named("none")), "KeyNotFound");
        let pem = self.file("kek.pem");
        self.key(&["download", "--id", &by_id, "--file", pem.to_str().unwrap()]).ok();
        run("openssl", ["rsa", "-pubin", "-noout", "-in", pem.to_str().unwrap()]);
    }

    fn list(&mut self) {
        let vault = self.serving.id.clone();
        let url = self.serving.url();
        for args in [&["list", "--vault-name", &vault][..], &["list", "--id", &url, "--maxresults", "2"]] {
            let keys = self.json(args);
            assert!(keys.as_array().unwrap().len() >= 2, "{keys}");
        }
    }

    fn versions(&mut self) {
        let named = self.named();
        self.json(&with(&["create", "--kty", "RSA", "--size", "2048"], &named("versions")));
        self.json(&with(&["create", "--kty", "RSA", "--size", "2048"], &named("versions")));
        let listed = self.json(&with(&["list-versions"], &named("versions")));
        assert_eq!(listed.as_array().unwrap().len(), 2);
    }

    fn update(&mut self) {
        let by_id = self.kek();
        let changed = self.json(&["set-attributes", "--id", &by_id, "--tags", "env=prod"]);
        assert_eq!(changed["tags"]["env"], "prod");
        let changed = self.json(&["set-attributes", "--id", &by_id, "--expires", "2030-01-01T00:00:00Z"]);
        assert_eq!(
            (&changed["tags"]["env"], &changed["attributes"]["enabled"]),
            (&"prod".into(), &true.into())
        );
    }

    fn encrypt_decrypt(&mut self) {
        let named = self.named();
        let args =
            ["encrypt", "--algorithm", "RSA-OAEP-256", "--value", "a text", "--data-type", "plaintext"];
        let hidden = self.json(&with(&args, &named("mine")));
        let value = hidden["result"].as_str().unwrap();
        let args = ["decrypt", "--algorithm", "RSA-OAEP-256", "--value", value, "--data-type", "plaintext"];
        assert_eq!(self.json(&with(&args, &named("mine")))["result"], "a text");
    }

    fn sign_verify(&mut self) {
        let named = self.named();
        let digest = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="; // SHA-256 of "hello"
        let args = ["sign", "--algorithm", "PS256", "--digest", digest];
        let signed = self.json(&with(&args, &named("mine")));
        let signature = signed["signature"].as_str().unwrap();
        let args = ["verify", "--algorithm", "PS256", "--digest", digest, "--signature", signature];
        assert_eq!(self.json(&with(&args, &named("mine")))["isValid"], true);
    }

    fn disable(&mut self) {
        let named = self.named();
        let switch = |to| ["set-attributes", "--enabled", to];
        let args = ["encrypt", "--algorithm", "RSA-OAEP", "--value", "a text", "--data-type", "plaintext"];
        let hidden = self.json(&with(&args, &named("mine")));
        let args = ["decrypt", "--algorithm", "RSA-OAEP", "--value", hidden["result"].as_str().unwrap()];
        let key = self.json(&with(&switch("false"), &named("mine")));
        assert_eq!(key["attributes"]["enabled"], false);
        self.refused(&with(&args, &named("mine")), "KeyDisabled");
        self.json(&with(&switch("true"), &named("mine")));
        self.json(&with(&args, &named("mine")));
    }

    fn rotate(&mut self) {
        let by_id = self.kek();
        let old = self.json(&["show", "--id", &by_id]);
        let new = self.json(&["rotate", "--id", &by_id]);
        assert_ne!(old["key"]["kid"], new["key"]["kid"]);
    }

    fn rotation_policy(&mut self) {
        let named = self.named();
        let policy = self.json(&with(&["rotation-policy", "show"], &named("kek")));
        assert_eq!(policy["lifetimeActions"][0]["action"], "Notify");
        let value = r#"{"lifetimeActions": [{"trigger": {"timeAfterCreate": "P2M"}, "action": {"type": "Rotate"}}],
            "attributes": {"expiryTime": "P90D"}}"#;
        let policy = self.json(&with(&["rotation-policy", "update", "--value", value], &named("kek")));
        assert_eq!(policy["expiresIn"], "P90D");
    }

    fn delete(&mut self) {
        let by_id = self.kek();
        let named = self.named();
        let vault = self.serving.id.clone();
        self.json(&["delete", "--id", &by_id]);
        self.json(&with(&["show-deleted"], &named("kek")));
        assert_eq!(self.json(&["list-deleted", "--vault-name", &vault]).as_array().unwrap().len(), 1);
        self.refused(&["show", "--id", &by_id], "KeyNotFound");
        let kek = named("kek");
        let again = with(&["create", "--kty", "RSA", "--size", "2048"], &kek);
        self.refused(&again, "ObjectIsDeletedButRecoverable");
    }

    fn recover(&mut self) {
        let by_id = self.kek();
        let named = self.named();
        self.json(&with(&["recover"], &named("kek")));
        self.json(&["show", "--id", &by_id]);
    }

    fn purge(&mut self) {
        let named = self.named();
        self.json(&with(&["delete"], &named("off")));
        self.key(&with(&["purge"], &named("off"))).ok();
        self.refused(&with(&["show-deleted"], &named("off")), "KeyNotFound");
    }

    fn backup_restore(&mut self) {
        let named = self.named();
        let vault = self.serving.id.clone();
        let blob = self.file("versions.backup");
        let blob = blob.to_str().unwrap();
        self.key(&with(&["backup", "--file", blob], &named("versions"))).ok();
        self.json(&with(&["delete"], &named("versions")));
        self.key(&with(&["purge"], &named("versions"))).ok();
        let key = self.json(&["restore", "--vault-name", &vault, "--file", blob]);
        assert!(key["key"]["kid"].as_str().unwrap().contains("/keys/versions/"), "{key}");
    }
}

fn with<'a>(args: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    args.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

/// `... https://HOST:PORT "GET /keys?api-version=7.4 HTTP/1.1" 401 108`, as urllib3 logs it.
fn requests(log: &str) -> Vec<(String, String, u16)> {
    let line = |line: &str| {
        let (_, rest) = line.split_once("https://")?;
        let (_, rest) = rest.split_once(" \"")?;
        let (request, status) = rest.split_once("\" ")?;
        let mut request = request.split(' ');
        let (method, target) = (request.next()?.to_owned(), request.next()?);
        let path = target.split('?').next()?.to_owned();
        Some((method, path, status.split(' ').next()?.parse().ok()?))
    };
    log.lines().filter(|l| l.contains("urllib3.connectionpool")).filter_map(line).collect()
}
