//! A vault that is served, its identities, and the plan that a suite reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::serve_support::Served;
use crate::steps::{self, IMDS, Step};
use crate::support::{Home, finish};

/// What a suite is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) url: String,
    pub(crate) verify_challenge: bool,
    pub(crate) tenant: String,
    pub(crate) prefix: String,
    pub(crate) credentials: String,
    pub(crate) identities: BTreeMap<String, Who>,
    pub(crate) untrusted: bool,
}

/// An identity and what it signs in with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Who {
    pub(crate) client_id: String,
    pub(crate) header: String,
    pub(crate) secret: String,
}

/// `wrapdisk vault serve` over a home of its own, with the identities of the suites: an officer who may do everything, a
/// worker who may use keys and not even look at them, and somebody without a grant.
pub(crate) struct Serving {
    served: Served,
    /// Of the vault.
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) identities: BTreeMap<String, Who>,
}

/// Names of identities, and what they may do.
const IDENTITIES: [(&str, &str); 3] =
    [("officer", "all"), ("worker", "encrypt,decrypt,sign,verify,wrapKey,unwrapKey"), ("nobody", "")];

impl Serving {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let home = Home::new();
        home.wrapdisk(["vault", "init", "test"]).ok();
        let made = IDENTITIES.map(|(name, may)| sign_up(&home, name, may));
        let served = Served::over(home, &["--imds", "officer"]);
        let id = served.vault.id().to_string();
        let mut serving = Self { served, id, tenant: String::new(), identities: BTreeMap::new() };
        for ((name, _), (client_id, secret)) in IDENTITIES.into_iter().zip(made) {
            let header = serving.header(name);
            serving.identities.insert(name.to_owned(), Who { client_id, header, secret });
        }
        serving.tenant = serving.env("officer", "AZURE_TENANT_ID");
        serving
    }

    /// What an identity shows to the managed identity endpoint, out of a file for its environment.
    #[track_caller]
    fn header(&self, name: &str) -> String {
        let tokens = format!("{}/msi/token", self.token_url());
        let out = format!("{name}.env");
        let args =
            ["vault", "env", "--identity", name, "--token-url", &tokens, "--ca", "ca.pem", "--out", &out];
        self.home().wrapdisk(args.into_iter().chain(["--url", &self.url()])).ok();
        self.env(name, "IDENTITY_HEADER")
    }

    fn token_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.served.token_port)
    }

    /// A line of what `vault env` wrote for an identity.
    #[track_caller]
    fn env(&self, identity: &str, name: &str) -> String {
        let lines = self.env_lines(identity);
        lines.get(name).unwrap_or_else(|| panic!("no {name} for {identity}")).clone()
    }

    fn env_lines(&self, identity: &str) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(self.home().path(&format!("{identity}.env"))).expect("a file");
        let line =
            |line: &str| line.split_once('=').map(|(n, v)| (n.to_owned(), v.trim_matches('\'').to_owned()));
        text.lines().filter_map(line).collect()
    }

    pub(crate) fn home(&self) -> &Home {
        &self.served.home
    }

    /// Of the REST API.
    pub(crate) fn port(&self) -> u16 {
        self.served.port
    }

    /// By address: no client finds its name in it, so they are told not to compare.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port())
    }

    /// By the vault's own name, as Azure's vaults are dialled.
    pub(crate) fn named_url(&self) -> String {
        format!("https://{}.vault.localhost:{}", self.id, self.port())
    }

    /// The certificate that vouches for the server.
    pub(crate) fn ca(&self) -> PathBuf {
        self.home().path("ca.pem")
    }

    /// The beginning of a command that runs where the vault's name is in /etc/hosts; the program and its arguments follow.
    pub(crate) fn among_names(&self) -> Command {
        let hosts = self.home().path("hosts");
        let line = format!("127.0.0.1 localhost {}.vault.localhost\n", self.id);
        std::fs::write(&hosts, line).expect("a file");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc"]);
        command.arg("mount --bind \"$0\" /etc/hosts; exec \"$@\"").arg(hosts);
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy).env_remove(proxy.to_lowercase()); // the way to a registry is none to this machine
        }
        command
    }

    fn plan(&self, sdk: &str, credentials: &str, untrusted: bool) -> Plan {
        let named = credentials == "client secret";
        Plan {
            url: if named { self.named_url() } else { self.url() },
            verify_challenge: named,
            tenant: self.tenant.clone(),
            prefix: format!("{sdk}-{}-", if named { "secret" } else { "msi" }),
            credentials: credentials.to_owned(),
            identities: self.identities.clone(),
            untrusted,
        }
    }
}

/// A new identity with a grant; its client id and secret.
#[track_caller]
fn sign_up(home: &Home, name: &str, may: &str) -> (String, String) {
    let made = home.json(["vault", "identity", "add", name, "--generate-secret"]);
    if !may.is_empty() {
        home.wrapdisk(["vault", "grant", name, "--permissions", may]).ok();
    }
    let said = |member: &str| made[member].as_str().unwrap_or_else(|| panic!("{member}: {made}")).to_owned();
    (said("clientId"), said("clientSecret"))
}

/// Runs a suite, by address with a managed identity, by name with client secrets, without our CA, and where the SDK can be
/// told another address of the instance metadata service, one step with a token from there.
#[track_caller]
pub(crate) fn judge(sdk: &str, program: impl Fn(&Path, &mut Command)) -> Vec<Step> {
    let serving = Serving::start();
    let mut steps = Vec::new();
    let mut passes = vec![("managed identity", false), ("client secret", false), ("client secret", true)];
    if sdk != "rust" {
        passes.push((IMDS, false));
    }
    for (credentials, untrusted) in passes {
        let plan = serving.home().path("plan.json");
        let text = serde_json::to_vec(&serving.plan(sdk, credentials, untrusted)).expect("JSON");
        std::fs::write(&plan, text).expect("a plan");
        let mut command = serving.among_names();
        program(&plan, &mut command);
        command.envs(serving.env_lines("officer"));
        if credentials == IMDS {
            command.env_remove("IDENTITY_ENDPOINT").env_remove("IDENTITY_HEADER");
            command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", serving.token_url());
        }
        if untrusted {
            for name in ["REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
                command.env_remove(name);
            }
        }
        let done = finish(&mut command);
        let ran = steps::read(&done.out);
        assert!(!ran.is_empty(), "{}{}", done.out, done.err);
        if ran.iter().any(|step| !step.ok) {
            eprintln!("{}", done.err);
        }
        steps.extend(ran);
    }
    steps
}
