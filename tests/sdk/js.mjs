// Does the official JavaScript SDK, unmodified, find Azure Key Vault behind `wrapdisk vault serve`?
//
// Started by tests/sdk/js.rs with the folder of the installed packages and a plan (a JSON file: where the vault is, and
// the identities). Prints one JSON line a step, as tests/sdk/python.py does. Of managed identities a Node process knows
// one (its library keeps the first it met): the others sign in with their client secrets.

import assert from "node:assert/strict";
import { constants, createHash, generateKeyPairSync, privateDecrypt, publicEncrypt, randomBytes, verify }
    from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const require = createRequire(resolve(process.argv[2], "package.json"));
const { ClientSecretCredential, ManagedIdentityCredential } = require("@azure/identity");
const { CryptographyClient, KeyClient } = require("@azure/keyvault-keys");
const { createDefaultHttpClient } = require("@azure/core-rest-pipeline");

const PLAN = JSON.parse(readFileSync(process.argv[3]));
const MINE = generateKeyPairSync("rsa", { modulusLength: 2048 });
const OAEP_256 = { padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256" };
const DAY = 86_400_000;
let sent = [];

// The SDK's own transport, which also writes down what went over it.
const wire = createDefaultHttpClient();
const httpClient = {
    async sendRequest(request) {
        const response = await wire.sendRequest(request);
        sent.push([request.method, new URL(request.url).pathname, response.status]);
        return response;
    },
};
const options = { httpClient, disableChallengeResourceVerification: !PLAN.verify_challenge };

function credential(identity) {
    const who = PLAN.identities[identity];
    if (PLAN.credentials === "managed identity" && identity === "officer") {
        process.env.IDENTITY_HEADER = who.header;
        return new ManagedIdentityCredential({ httpClient });
    }
    if (PLAN.credentials === "instance metadata") return new ManagedIdentityCredential({ httpClient });
    return new ClientSecretCredential(PLAN.tenant, who.client_id, who.secret,
        { authorityHost: PLAN.url, disableInstanceDiscovery: true, httpClient });
}

const keys = (identity) => new KeyClient(PLAN.url, credential(identity), options);
const crypto = (key, identity) => new CryptographyClient(key.id ?? key, credential(identity), options);
const officer = keys("officer");
const name = (word) => PLAN.prefix + word;
const count = (method, end, status) =>
    sent.filter(([m, path, s]) => m === method && s === status && path.toLowerCase().endsWith(end)).length;
const same = (a, b) => assert.deepEqual(Buffer.from(a), Buffer.from(b));

async function all(iterator) {
    const found = [];
    for await (const one of iterator) found.push(one);
    return found;
}

async function refused(status, code, inner, call) {
    let error;
    try { await call(); } catch (e) { error = e; }
    assert(error, `not refused: ${call}`);
    assert(error.statusCode, String(error.stack ?? error));
    // Of a page that was refused the SDK keeps the code alone.
    const said = error.details?.error ?? { code: error.code, innerError: { code: inner } };
    assert.deepEqual([error.statusCode, said.code, said.innerError?.code], [status, code, inner], said.message);
}

function jwk() {
    const exported = MINE.privateKey.export({ format: "jwk" });
    const bytes = Object.entries(exported).filter(([k]) => k !== "kty").map(([k, v]) => [k, Buffer.from(v, "base64url")]);
    return { kty: "RSA", ...Object.fromEntries(bytes) };
}

const STEPS = {
    async "create"() {
        const expiresOn = new Date(Math.floor(Date.now() / 1000) * 1000 + 30 * DAY);
        const notBefore = new Date(Date.now() - DAY);
        const key = await officer.createRsaKey(name("kek"), { keySize: 2048, expiresOn, notBefore, tags: { env: "test" } });
        assert.equal(key.keyType, "RSA");
        assert.equal(key.key.n.length, 256);
        same(key.key.e, [1, 0, 1]);
        const p = key.properties;
        assert(p.enabled && p.expiresOn.getTime() === expiresOn.getTime() && p.version.length === 32);
        assert.deepEqual(p.tags, { env: "test" });
        assert.equal(p.recoveryLevel, "Recoverable+Purgeable");
        assert.deepEqual([...key.keyOperations].sort(), ["decrypt", "encrypt", "sign", "unwrapKey", "verify", "wrapKey"]);
        const big = await officer.createKey(name("big"), "RSA", { keySize: 3072, keyOps: ["wrapKey", "unwrapKey"], enabled: false });
        assert.equal(big.key.n.length, 384);
        assert.deepEqual(big.keyOperations, ["wrapKey", "unwrapKey"]);
        assert.equal(big.properties.enabled, false);
    },
    async "import"() {
        const ours = jwk();
        const key = await officer.importKey(name("mine"), ours);
        same(key.key.n, ours.n);
        assert.equal(key.key.d, undefined);
        const worker = crypto(key, "worker"), dek = randomBytes(64);
        const wrapped = (await worker.wrapKey("RSA-OAEP-256", dek)).result;
        same(privateDecrypt({ key: MINE.privateKey, ...OAEP_256 }, wrapped), dek);
        const theirs = publicEncrypt({ key: MINE.publicKey, ...OAEP_256 }, dek);
        same((await worker.unwrapKey("RSA-OAEP-256", theirs)).result, dek);
    },
    async "get"() {
        const latest = await officer.getKey(name("kek"));
        const again = await officer.getKey(name("kek"), { version: latest.properties.version });
        assert.equal(latest.id, again.id);
        assert(latest.id.startsWith(`${PLAN.url}/keys/`), latest.id);
        await refused(404, "KeyNotFound", undefined, () => officer.getKey(name("none")));
        await refused(404, "KeyNotFound", undefined, () => officer.getKey(name("kek"), { version: "0".repeat(32) }));
    },
    async "challenge"() {
        await keys("officer").getKey(name("kek"));
        assert.equal(count("GET", `/keys/${name("kek")}/`, 401), 1, "no challenge first");
        const junk = { getToken: async () => ({ token: randomBytes(32).toString("base64url"), expiresOnTimestamp: Date.now() + DAY }) };
        await refused(401, "Unauthorized", undefined, () => new KeyClient(PLAN.url, junk, options).getKey(name("kek")));
    },
    async "list"() {
        const material = jwk(), many = Array.from({ length: 26 }, (_, n) => name(`page-${n}`));
        for (const one of many) await officer.importKey(one, material);
        for (const [maxPageSize, least] of [[undefined, 2], [10, 3]]) {
            const pages = await all(officer.listPropertiesOfKeys().byPage({ maxPageSize }));
            const found = pages.flat().map((p) => p.name);
            assert(many.every((n) => found.includes(n)));
            assert.equal(new Set(found).size, found.length);
            assert(pages.length >= least && pages.every((p) => p.length <= (maxPageSize ?? 25)), `${pages.length} pages`);
        }
    },
    async "versions"() {
        const made = [];
        for (let n = 0; n < 3; n++) made.push((await officer.createRsaKey(name("versions"), { keySize: 2048 })).properties.version);
        const pages = await all(officer.listPropertiesOfKeyVersions(name("versions")).byPage({ maxPageSize: 1 }));
        assert.deepEqual(pages.flat().map((p) => p.version), made);
        assert(pages.length >= 3);
        assert.equal((await officer.getKey(name("versions"))).properties.version, made.at(-1));
    },
    async "update"() {
        const old = await officer.getKey(name("kek")), tags = { env: "prod", owner: "me" };
        const updated = await officer.updateKeyProperties(name("kek"), { tags });
        assert.equal(updated.id, old.id);
        assert.deepEqual(updated.properties.tags, tags);
        assert.deepEqual([updated.properties.expiresOn, updated.keyOperations], [old.properties.expiresOn, old.keyOperations]);
        const fewer = await officer.updateKeyProperties(name("kek"), old.properties.version, { keyOps: ["wrapKey", "unwrapKey"] });
        assert.deepEqual([fewer.keyOperations, fewer.properties.tags], [["wrapKey", "unwrapKey"], tags]);
        await refused(403, "Forbidden", "KeyOperationForbidden",
            () => crypto(fewer, "worker").decrypt("RSA-OAEP-256", Buffer.alloc(256)));
    },
    async "wrap and unwrap"() {
        const worker = crypto(await officer.getKey(name("kek")), "worker"), dek = randomBytes(64);
        for (const algorithm of ["RSA-OAEP-256", "RSA-OAEP"]) {
            const wrapped = await worker.wrapKey(algorithm, dek);
            same((await worker.unwrapKey(algorithm, wrapped.result)).result, dek);
        }
        assert.deepEqual([count("POST", "/wrapkey", 200), count("POST", "/unwrapkey", 200)], [2, 2], "not on the server");
        await refused(400, "BadParameter", undefined, () => worker.unwrapKey("RSA-OAEP-256", randomBytes(256)));
        await refused(400, "BadParameter", undefined, () => worker.wrapKey("RSA1_5", dek));
    },
    async "encrypt and decrypt"() {
        const worker = crypto(await officer.getKey(name("mine")), "worker"), plaintext = Buffer.from("a text");
        for (const algorithm of ["RSA-OAEP", "RSA-OAEP-256"]) {
            const { result: ciphertext } = await worker.encrypt({ algorithm, plaintext });
            same((await worker.decrypt({ algorithm, ciphertext })).result, plaintext);
        }
        assert.deepEqual([count("POST", "/encrypt", 200), count("POST", "/decrypt", 200)], [2, 2], "not on the server");
    },
    async "sign and verify"() {
        const worker = crypto(await officer.getKey(name("mine")), "worker");
        for (const bits of [256, 384, 512]) {
            const digest = createHash(`sha${bits}`).update("a text").digest();
            for (const [kind, padding] of [["RS", constants.RSA_PKCS1_PADDING], ["PS", constants.RSA_PKCS1_PSS_PADDING]]) {
                const signature = (await worker.sign(kind + bits, digest)).result;
                const key = { key: MINE.publicKey, padding, saltLength: bits / 8 };
                assert(verify(`sha${bits}`, Buffer.from("a text"), key, signature), kind + bits);
                assert((await worker.verify(kind + bits, digest, signature)).result);
                assert(!(await worker.verify(kind + bits, createHash(`sha${bits}`).digest(), signature)).result);
            }
        }
        assert.deepEqual([count("POST", "/sign", 200), count("POST", "/verify", 200)], [6, 12], "not on the server");
    },
    async "disable"() {
        const key = await officer.getKey(name("mine")), { version } = key.properties, worker = crypto(key, "worker");
        const wrapped = (await worker.wrapKey("RSA-OAEP-256", Buffer.alloc(64))).result;
        const off = await officer.updateKeyProperties(name("mine"), version, { enabled: false });
        assert.equal(off.properties.enabled, false);
        await refused(403, "Forbidden", "KeyDisabled", () => worker.unwrapKey("RSA-OAEP-256", wrapped));
        await refused(403, "Forbidden", "KeyDisabled", () => worker.wrapKey("RSA-OAEP-256", Buffer.alloc(64)));
        assert.equal((await officer.getKey(name("mine"))).properties.enabled, false);
        await officer.updateKeyProperties(name("mine"), version, { enabled: true });
        same((await worker.unwrapKey("RSA-OAEP-256", wrapped)).result, Buffer.alloc(64));
    },
    async "rotate"() {
        const old = await officer.getKey(name("versions")), rotated = await officer.rotateKey(name("versions"));
        assert(rotated.id !== old.id && rotated.key.n.length === 256);
        assert.notDeepEqual(Buffer.from(rotated.key.n), Buffer.from(old.key.n));
        assert.equal((await officer.getKey(name("versions"))).id, rotated.id);
    },
    async "rotation policy"() {
        const before = await officer.getKeyRotationPolicy(name("versions"));
        assert.deepEqual(before.lifetimeActions.map((a) => [a.action.toLowerCase(), a.timeBeforeExpiry]), [["notify", "P30D"]]);
        assert.equal(before.expiresIn, undefined);
        const lifetimeActions = [{ action: "Rotate", timeAfterCreate: "P2M" }, { action: "Notify", timeBeforeExpiry: "P30D" }];
        const set = await officer.updateKeyRotationPolicy(name("versions"), { expiresIn: "P90D", lifetimeActions });
        for (const policy of [set, await officer.getKeyRotationPolicy(name("versions"))]) {
            assert.equal(policy.expiresIn, "P90D");
            assert(policy.id.toLowerCase().endsWith(`${name("versions")}/rotationpolicy`) && policy.createdOn && policy.updatedOn);
            const said = policy.lifetimeActions.map((a) => [a.action.toLowerCase(), a.timeAfterCreate, a.timeBeforeExpiry]);
            assert.deepEqual(said.sort(), [["notify", undefined, "P30D"], ["rotate", "P2M", undefined]]);
        }
        const days = ((await officer.rotateKey(name("versions"))).properties.expiresOn - Date.now()) / DAY;
        assert(89.9 < days && days < 90.1, `${days}`);
    },
    async "expired"() {
        const key = await officer.createRsaKey(name("old"), { keySize: 2048 }), worker = crypto(key, "worker");
        const wrapped = (await worker.wrapKey("RSA-OAEP-256", Buffer.alloc(64))).result;
        await officer.updateKeyProperties(name("old"), { expiresOn: new Date(Date.now() - DAY) });
        same((await worker.unwrapKey("RSA-OAEP-256", wrapped)).result, Buffer.alloc(64));
        await assert.rejects(worker.wrapKey("RSA-OAEP-256", Buffer.alloc(64)), { statusCode: 403, code: "Forbidden" });
        assert.equal(count("POST", "/wrapkey", 403), 1, "not on the server");
    },
    async "not granted"() {
        const nobody = keys("nobody"), no = (call) => refused(403, "Forbidden", "ForbiddenByPolicy", call);
        await no(() => nobody.getKey(name("kek")));
        await no(() => nobody.getKey(name("none"))); // nor does it say what there is
        await no(() => nobody.createRsaKey(name("theirs")));
        await no(() => all(nobody.listPropertiesOfKeys()));
        const key = await officer.getKey(name("kek"));
        await no(() => crypto(key, "nobody").unwrapKey("RSA-OAEP-256", Buffer.alloc(256)));
    },
    async "delete"() {
        const key = await officer.getKey(name("kek"));
        const gone = await (await officer.beginDeleteKey(name("kek"))).pollUntilDone();
        assert(gone.properties.recoveryId.endsWith(`/deletedkeys/${name("kek")}`));
        const days = (gone.properties.scheduledPurgeDate - gone.properties.deletedOn) / DAY;
        assert(89.9 < days && days < 90.1, `${days}`);
        assert.equal((await officer.getDeletedKey(name("kek"))).id, key.id);
        const deleted = (await all(officer.listDeletedKeys().byPage({ maxPageSize: 1 }))).flat();
        assert(deleted.some((k) => k.name === name("kek")));
        await refused(404, "KeyNotFound", undefined, () => officer.getKey(name("kek")));
        await refused(404, "KeyNotFound", undefined, () => crypto(key, "worker").unwrapKey("RSA-OAEP-256", Buffer.alloc(256)));
        const reused = (call) => refused(409, "Conflict", "ObjectIsDeletedButRecoverable", call);
        await reused(() => officer.createRsaKey(name("kek"), { keySize: 2048 }));
        await reused(() => officer.importKey(name("kek"), jwk()));
    },
    async "recover"() {
        const back = await (await officer.beginRecoverDeletedKey(name("kek"))).pollUntilDone();
        assert(back.name === name("kek") && (await officer.getKey(name("kek"))).properties.enabled);
        await refused(404, "KeyNotFound", undefined, () => officer.getDeletedKey(name("kek")));
    },
    async "purge"() {
        await (await officer.beginDeleteKey(name("big"))).pollUntilDone();
        await officer.purgeDeletedKey(name("big"));
        assert.equal(count("DELETE", `/deletedkeys/${name("big")}`, 204), 1);
        await refused(404, "KeyNotFound", undefined, () => officer.getDeletedKey(name("big")));
        await officer.importKey(name("big"), jwk()); // the name is free again
    },
    async "backup and restore"() {
        const listed = async () => (await all(officer.listPropertiesOfKeyVersions(name("versions")))).map((p) => p.version);
        const blob = await officer.backupKey(name("versions")), kept = await listed();
        await refused(409, "Conflict", undefined, () => officer.restoreKeyBackup(blob));
        await (await officer.beginDeleteKey(name("versions"))).pollUntilDone();
        await officer.purgeDeletedKey(name("versions"));
        assert.equal((await officer.restoreKeyBackup(blob)).properties.version, kept.at(-1));
        assert.deepEqual(await listed(), kept);
        await refused(400, "Malformed backup blob", undefined, () => officer.restoreKeyBackup(Buffer.from("not a backup")));
    },
    async "random bytes"() {
        const worker = keys("worker"), first = await worker.getRandomBytes(32), second = await worker.getRandomBytes(32);
        assert(first.length === 32 && !Buffer.from(first).equals(Buffer.from(second)));
    },
    async "not supported"() {
        const no = (call) => refused(400, "BadParameter", undefined, call);
        await no(() => officer.createEcKey(name("ec")));
        await no(() => officer.createRsaKey(name("hsm"), { hsm: true }));
        await no(() => officer.createRsaKey(name("small"), { keySize: 1024 }));
        await no(() => officer.releaseKey(name("kek"), "a token"));
        await no(() => officer.getKeyAttestation(name("kek")));
    },
};

// Without our CA the SDK must not talk to the vault at all.
const UNTRUSTED = {
    async "untrusted"() {
        await assert.rejects(officer.getKey("any"), (e) => /certificate/i.test(`${e.message} ${e.code} ${e.cause}`));
    },
};

// Where nothing is said of App Service, the SDK asks the instance metadata service, which has no secret.
const METADATA = {
    async "instance metadata"() {
        assert.equal((await officer.importKey(name("imds"), jwk())).name, name("imds"));
        assert.equal(count("GET", "/metadata/identity/oauth2/token/", 200), 1);
    },
};

const steps = PLAN.untrusted ? UNTRUSTED : PLAN.credentials === "instance metadata" ? METADATA : STEPS;
for (const [step, run] of Object.entries(steps)) {
    sent = [];
    const line = { sdk: "js", credentials: PLAN.credentials, step, ok: true };
    try {
        await run();
    } catch (e) {
        process.exitCode = 1;
        Object.assign(line, { ok: false, error: String(e.stack ?? e) });
    }
    console.log(JSON.stringify({ ...line, requests: sent }));
}
