//! Does the official Rust SDK, unmodified, find Azure Key Vault behind `wrapdisk vault serve`?
//!
//! The suite runs in a process of its own, because the SDK reads `IDENTITY_ENDPOINT`, `IDENTITY_HEADER` and
//! `SSL_CERT_FILE` from the environment: this program starts itself again with the plan in `WRAPDISK_SDK_PLAN`. Of managed
//! identities a process so knows one, the officer's; the others sign in with their client secrets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::{
    AsyncRawResponse, ClientOptions, HttpClient, Request, RetryOptions, Transport, new_http_client,
};
use azure_core::time::{Duration, OffsetDateTime};
use azure_identity::{
    ClientSecretCredential, ClientSecretCredentialOptions, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions,
};
use azure_security_keyvault_keys::models::{
    CreateKeyParameters, EncryptionAlgorithm, ImportKeyParameters, JsonWebKey, Key, KeyAttributes,
    KeyClientListKeyPropertiesVersionsOptions, KeyOperationParameters, KeyType,
    UpdateKeyPropertiesParameters,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions, ResourceExt};
use futures::TryStreamExt;
use rsa::BoxedUint;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};

use crate::steps::{ALL, Step};
use crate::vault::Plan;

pub(crate) type Result<T> = azure_core::Result<T>;

/// Every step of both passes.
pub(crate) fn steps() -> &'static [Step] {
    static STEPS: OnceLock<Vec<Step>> = OnceLock::new();
    STEPS.get_or_init(|| {
        let me = std::env::current_exe().expect("this program");
        crate::vault::judge("rust", |plan, command| {
            command.arg(&me).args(["rust::the_official_rust_sdk_works", "--exact", "--nocapture"]);
            command.env("WRAPDISK_SDK_PLAN", plan);
        })
    })
}

#[test]
fn the_official_rust_sdk_works() {
    let Some(plan) = std::env::var_os("WRAPDISK_SDK_PLAN") else {
        return crate::steps::all_passed(steps());
    };
    let plan = serde_json::from_slice(&std::fs::read(plan).expect("a plan")).expect("JSON");
    let suite = Suite {
        plan,
        sent: Arc::new(Mutex::new(Vec::new())),
        mine: rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).expect("an RSA key"),
    };
    let untrusted = suite.plan.untrusted;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!(); // libtest has begun a line
    for step in if untrusted { &["untrusted"][..] } else { &ALL } {
        suite.sent.lock().unwrap().clear();
        let error = match catch_unwind(AssertUnwindSafe(|| runtime.block_on(suite.run(step)))) {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(format!("{e:?}")),
            Err(_) => Some("a panic; see standard error".to_owned()),
        };
        let line = json!({"sdk": "rust", "credentials": suite.plan.credentials, "step": step, "ok": error.is_none(),
            "error": error, "requests": *suite.sent.lock().unwrap()});
        println!("{line}");
    }
}

/// The SDK's own transport, which also writes down what went over it.
#[derive(Debug)]
struct Recorder(Arc<dyn HttpClient>, Sent);

type Sent = Arc<Mutex<Vec<(String, String, u16)>>>;

#[async_trait::async_trait]
impl HttpClient for Recorder {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse> {
        let response = self.0.execute_request(request).await?;
        let line =
            (request.method().to_string(), request.url().path().to_owned(), u16::from(response.status()));
        self.1.lock().unwrap().push(line);
        Ok(response)
    }
}

#[derive(Debug)]
pub(crate) struct Junk;

#[async_trait::async_trait]
impl TokenCredential for Junk {
    async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> Result<AccessToken> {
        Ok(AccessToken::new("anVuaw", OffsetDateTime::now_utc() + Duration::hours(1)))
    }
}

fn bytes(n: &BoxedUint) -> Vec<u8> {
    n.to_be_bytes_trimmed_vartime().into_vec()
}

pub(crate) struct Suite {
    pub(crate) plan: Plan,
    sent: Sent,
    mine: rsa::PrivateKey,
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T>, status: u16, code: &str, inner: Option<&str>) {
    let error = answer.expect_err("not refused");
    let ErrorKind::HttpResponse { status: found, raw_response: Some(raw), .. } = error.kind() else {
        panic!("no answer of the vault: {error:?}");
    };
    let body: Value = serde_json::from_slice(raw.body()).expect("a JSON body");
    let said =
        (u16::from(*found), body["error"]["code"].as_str(), body["error"]["innererror"]["code"].as_str());
    assert_eq!(said, (status, Some(code), inner), "{body}");
}

impl Suite {
    pub(crate) fn options(&self) -> ClientOptions {
        let recorder = Recorder(new_http_client(None), Arc::clone(&self.sent));
        let transport = Some(Transport::new(Arc::new(recorder)));
        // By default it tries for a minute, also when it trusts nobody.
        ClientOptions { transport, retry: RetryOptions::none(), ..ClientOptions::default() }
    }

    pub(crate) fn credential(&self, identity: &str) -> Arc<dyn TokenCredential> {
        let mut client_options = self.options();
        if self.plan.credentials == "managed identity" && identity == "officer" {
            let options = ManagedIdentityCredentialOptions { client_options, ..Default::default() };
            return ManagedIdentityCredential::new(Some(options)).expect("a credential");
        }
        let who = &self.plan.identities[identity];
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host.clone_from(&self.plan.url);
        client_options.cloud = Some(Arc::new(CloudConfiguration::from(cloud)));
        let options = ClientSecretCredentialOptions { client_options };
        let (client, secret) = (who.client_id.clone(), Secret::new(who.secret.clone()));
        ClientSecretCredential::new(&self.plan.tenant, client, secret, Some(options)).expect("a credential")
    }

    pub(crate) fn client(&self, credential: Arc<dyn TokenCredential>) -> KeyClient {
        let options = KeyClientOptions {
            client_options: self.options(),
            verify_challenge_resource: Some(self.plan.verify_challenge),
            ..KeyClientOptions::default()
        };
        KeyClient::new(&self.plan.url, credential, Some(options)).expect("a client")
    }

    pub(crate) fn keys(&self, identity: &str) -> KeyClient {
        self.client(self.credential(identity))
    }

    pub(crate) fn name(&self, word: &str) -> String {
        format!("{}{word}", self.plan.prefix)
    }

    pub(crate) fn count(&self, method: &str, end: &str, status: u16) -> usize {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|(m, path, s)| m == method && *s == status && path.ends_with(end)).count()
    }

    pub(crate) async fn make(&self, name: &str) -> Result<Key> {
        let new = CreateKeyParameters { kty: Some(KeyType::Rsa), key_size: Some(2048), ..Default::default() };
        self.keys("officer").create_key(name, new.try_into()?, None).await?.into_model()
    }

    pub(crate) fn jwk(&self) -> ImportKeyParameters {
        let [p, q] = self.mine.primes() else { panic!("two primes") };
        let key = JsonWebKey {
            kty: Some(KeyType::Rsa),
            n: Some(bytes(self.mine.n())),
            e: Some(bytes(self.mine.e())),
            d: Some(bytes(self.mine.d())),
            p: Some(bytes(p.as_ref())),
            q: Some(bytes(q.as_ref())),
            ..Default::default()
        };
        ImportKeyParameters { key: Some(key), ..Default::default() }
    }

    pub(crate) async fn take(&self, name: &str) -> Result<Key> {
        self.keys("officer").import_key(name, self.jwk().try_into()?, None).await?.into_model()
    }

    pub(crate) async fn latest(&self, name: &str) -> Result<Key> {
        self.keys("officer").get_key(name, None).await?.into_model()
    }

    pub(crate) async fn change(&self, name: &str, change: UpdateKeyPropertiesParameters) -> Result<Key> {
        self.keys("officer").update_key_properties(name, change.try_into()?, None).await?.into_model()
    }

    pub(crate) async fn switch(&self, name: &str, enabled: bool) -> Result<Key> {
        let attributes = KeyAttributes { enabled: Some(enabled), ..Default::default() };
        self.change(
            name,
            UpdateKeyPropertiesParameters { key_attributes: Some(attributes), ..Default::default() },
        )
        .await
    }

    pub(crate) async fn wrap_with(
        &self,
        client: &KeyClient,
        name: &str,
        alg: &EncryptionAlgorithm,
        dek: &[u8],
    ) -> Result<Vec<u8>> {
        let body = parameters(alg, dek);
        let answer = client.wrap_key(name, body.try_into()?, None).await?.into_model()?;
        Ok(answer.result.expect("a value"))
    }

    pub(crate) async fn unwrap_with(
        &self,
        client: &KeyClient,
        key: &Key,
        alg: &EncryptionAlgorithm,
        wrapped: &[u8],
    ) -> Result<Vec<u8>> {
        let id = key.resource_id()?;
        let version = id.version.expect("a version");
        let answer =
            client.unwrap_key(&id.name, &version, parameters(alg, wrapped).try_into()?, None).await?;
        Ok(answer.into_model()?.result.expect("a value"))
    }

    pub(crate) async fn version_list(&self, page: Option<i32>) -> Result<(Vec<String>, usize)> {
        let options = KeyClientListKeyPropertiesVersionsOptions { maxresults: page, ..Default::default() };
        let client = self.keys("officer");
        let pages = client.list_key_properties_versions(&self.name("versions"), Some(options))?.into_pages();
        let (mut versions, mut count) = (Vec::new(), 0);
        let mut pages = std::pin::pin!(pages);
        while let Some(page) = pages.try_next().await? {
            count += 1;
            for key in page.into_model()?.value {
                versions.push(key.resource_id()?.version.expect("a version"));
            }
        }
        Ok((versions, count))
    }
}

pub(crate) fn parameters(alg: &EncryptionAlgorithm, value: &[u8]) -> KeyOperationParameters {
    KeyOperationParameters { algorithm: Some(alg.clone()), value: Some(value.to_vec()), ..Default::default() }
}
