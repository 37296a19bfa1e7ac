"""Does the official Python SDK, unmodified, find Azure Key Vault behind `wrapdisk vault serve`?

Started by tests/sdk/python.rs with a plan (a JSON file: where the vault is, and the identities). Prints one JSON line a
step: {"sdk", "credentials", "step", "ok", "requests": [[method, path, status], ...]}, and "error" where it failed. The
requests are what the SDK really sent: its transport is asked, not this script.
"""

import base64
import hashlib
import json
import os
import sys
import time
import traceback
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import ClientSecretCredential, ManagedIdentityCredential
from azure.keyvault.keys import (
    JsonWebKey, KeyClient, KeyOperation, KeyRotationLifetimeAction, KeyRotationPolicy, KeyRotationPolicyAction,
)
from azure.keyvault.keys._shared import http_challenge_cache
from azure.keyvault.keys.crypto import CryptographyClient, EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

PLAN = json.load(open(sys.argv[1]))
OAEP_256 = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
WRAP_256 = KeyWrapAlgorithm.rsa_oaep_256
MINE = rsa.generate_private_key(65537, 2048)
SENT = []


class Recorder(RequestsTransport):
    """The SDK's own transport, which also writes down what went over it."""

    def send(self, request, **kwargs):
        response = super().send(request, **kwargs)
        SENT.append([request.method, urlsplit(request.url).path, response.status_code])
        return response


def credential(identity):
    who = PLAN["identities"][identity]
    if PLAN["credentials"] == "client secret":
        return ClientSecretCredential(
            PLAN["tenant"], who["client_id"], who["secret"],
            authority=PLAN["url"], disable_instance_discovery=True, transport=Recorder())
    if PLAN["credentials"] == "managed identity":
        os.environ["IDENTITY_HEADER"] = who["header"]  # read by the constructor
    return ManagedIdentityCredential(transport=Recorder())


def options():
    return {"verify_challenge_resource": PLAN["verify_challenge"], "transport": Recorder()}


def keys(identity):
    return KeyClient(PLAN["url"], credential(identity), **options())


def crypto(key, identity):
    return CryptographyClient(key if isinstance(key, str) else key.id, credential(identity), **options())


def refused(status, code, inner, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except HttpResponseError as e:
        said = (e.status_code, e.error.code, (e.error.innererror or {}).get("code"))
        assert said == (status, code, inner), f"{said}: {e.message}"
        return
    raise AssertionError(f"{call.__name__} was not refused")


def sent(method, end, status):
    """How often the step sent this: the SDK wraps, encrypts and verifies by itself when it can."""
    return sum(1 for m, path, s in SENT if (m, s) == (method, status) and path.lower().endswith(end))


def name(word):
    return PLAN["prefix"] + word


def now():
    return datetime.now(timezone.utc).replace(microsecond=0)


def jwk(private):
    numbers = private.private_numbers()
    public = numbers.public_numbers
    members = {"n": public.n, "e": public.e, "d": numbers.d, "p": numbers.p, "q": numbers.q,
               "dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    return JsonWebKey(kty="RSA", **{k: v.to_bytes((v.bit_length() + 7) // 8, "big") for k, v in members.items()})


def unauthenticated():
    http_challenge_cache.clear()  # one for the whole process
    officer = keys("officer")
    officer.get_key(name("kek"))
    assert sent("GET", "/keys/" + name("kek") + "/", 401) == 1, "no challenge first"

    class Junk:
        def get_token(self, *_, **__):
            return AccessToken(base64.urlsafe_b64encode(os.urandom(32)).decode(), int(time.time()) + 3600)

    junk = KeyClient(PLAN["url"], Junk(), **options())
    refused(401, "Unauthorized", None, junk.get_key, name("kek"))


def create():
    ends = now() + timedelta(days=30)
    key = keys("officer").create_rsa_key(
        name("kek"), size=2048, expires_on=ends, not_before=now() - timedelta(hours=1), tags={"env": "test"})
    assert key.key.kty == "RSA" and len(key.key.n) == 256 and key.key.e == b"\x01\x00\x01"
    p = key.properties
    assert p.enabled and p.expires_on == ends and p.tags == {"env": "test"} and len(p.version) == 32
    assert abs((p.created_on - now()).total_seconds()) < 600 and p.recovery_level == "Recoverable+Purgeable"
    assert set(key.key_operations) == {"encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"}
    big = keys("officer").create_key(name("big"), "RSA", size=3072, key_operations=["wrapKey", "unwrapKey"], enabled=False)
    assert len(big.key.n) == 384 and big.key_operations == ["wrapKey", "unwrapKey"] and not big.properties.enabled


def import_():
    ours = jwk(MINE)
    key = keys("officer").import_key(name("mine"), ours)
    assert key.key.n == ours.n and key.key.d is None
    worker = crypto(key, "worker")
    dek = os.urandom(64)
    wrapped = worker.wrap_key(WRAP_256, dek).encrypted_key
    assert MINE.decrypt(wrapped, OAEP_256) == dek, "another library does not unwrap it"
    assert worker.unwrap_key(WRAP_256, MINE.public_key().encrypt(dek, OAEP_256)).key == dek


def get():
    officer = keys("officer")
    latest = officer.get_key(name("kek"))
    same = officer.get_key(name("kek"), latest.properties.version)
    assert latest.id == same.id and latest.key.n == same.key.n and latest.id.startswith(PLAN["url"] + "/keys/")
    refused(404, "KeyNotFound", None, officer.get_key, name("none"))
    refused(404, "KeyNotFound", None, officer.get_key, name("kek"), "0" * 32)


def list_():
    officer, material = keys("officer"), jwk(MINE)
    many = {name(f"page-{n}") for n in range(26)}
    for one in many:
        officer.import_key(one, material)
    for size, least in ((None, 2), (10, 3)):
        pages = [list(page) for page in officer.list_properties_of_keys(max_page_size=size).by_page()]
        found = [p.name for page in pages for p in page]
        assert many <= set(found) and len(found) == len(set(found)) and len(pages) >= least, (size, len(pages))
        assert all(len(page) <= (size or 25) for page in pages) and found == sorted(found)


def versions():
    officer = keys("officer")
    made = [officer.create_rsa_key(name("versions"), size=2048).properties.version for _ in range(3)]
    pages = [list(page) for page in officer.list_properties_of_key_versions(name("versions"), max_page_size=1).by_page()]
    assert [p.version for page in pages for p in page] == made and len(pages) >= 3
    assert officer.get_key(name("versions")).properties.version == made[-1]


def update():
    officer = keys("officer")
    old = officer.get_key(name("kek"))
    new = officer.update_key_properties(name("kek"), tags={"env": "prod", "owner": "me"})
    assert new.id == old.id and new.properties.tags == {"env": "prod", "owner": "me"}
    assert new.properties.expires_on == old.properties.expires_on and new.key_operations == old.key_operations
    fewer = officer.update_key_properties(name("kek"), old.properties.version, key_operations=["wrapKey", "unwrapKey"])
    assert fewer.key_operations == ["wrapKey", "unwrapKey"] and fewer.properties.tags == new.properties.tags
    refused(403, "Forbidden", "KeyOperationForbidden",
            crypto(new, "worker").decrypt, EncryptionAlgorithm.rsa_oaep_256, bytes(256))


def wrap():
    worker = crypto(keys("officer").get_key(name("kek")), "worker")
    dek = os.urandom(64)
    for algorithm in (WRAP_256, KeyWrapAlgorithm.rsa_oaep):
        wrapped = worker.wrap_key(algorithm, dek)
        assert worker.unwrap_key(algorithm, wrapped.encrypted_key).key == dek
    assert (sent("POST", "/wrapkey", 200), sent("POST", "/unwrapkey", 200)) == (2, 2), "not on the server"
    refused(400, "BadParameter", None, worker.unwrap_key, WRAP_256, os.urandom(256))
    refused(400, "BadParameter", None, worker.wrap_key, KeyWrapAlgorithm.rsa1_5, dek)


def encrypt():
    worker = crypto(keys("officer").get_key(name("mine")), "worker")
    for algorithm in (EncryptionAlgorithm.rsa_oaep, EncryptionAlgorithm.rsa_oaep_256):
        hidden = worker.encrypt(algorithm, b"a text")
        assert worker.decrypt(algorithm, hidden.ciphertext).plaintext == b"a text"
    assert (sent("POST", "/encrypt", 200), sent("POST", "/decrypt", 200)) == (2, 2), "not on the server"


def sign():
    worker = crypto(keys("officer").get_key(name("mine")), "worker")
    for bits, hashed in ((256, hashes.SHA256()), (384, hashes.SHA384()), (512, hashes.SHA512())):
        digest = hashlib.new(f"sha{bits}", b"a text").digest()
        for kind, pad in (("RS", padding.PKCS1v15()), ("PS", padding.PSS(padding.MGF1(hashed), bits // 8))):
            algorithm = SignatureAlgorithm(f"{kind}{bits}")
            signature = worker.sign(algorithm, digest).signature
            MINE.public_key().verify(signature, digest, pad, utils.Prehashed(hashed))
            assert worker.verify(algorithm, digest, signature).is_valid
            assert not worker.verify(algorithm, hashlib.new(f"sha{bits}").digest(), signature).is_valid
    assert (sent("POST", "/sign", 200), sent("POST", "/verify", 200)) == (6, 12), "not on the server"


def disable():
    officer = keys("officer")
    key = officer.get_key(name("mine"))
    worker = crypto(key, "worker")
    wrapped = worker.wrap_key(WRAP_256, bytes(64)).encrypted_key
    assert not officer.update_key_properties(name("mine"), key.properties.version, enabled=False).properties.enabled
    refused(403, "Forbidden", "KeyDisabled", worker.unwrap_key, WRAP_256, wrapped)
    refused(403, "Forbidden", "KeyDisabled", worker.wrap_key, WRAP_256, bytes(64))
    assert not officer.get_key(name("mine")).properties.enabled
    officer.update_key_properties(name("mine"), key.properties.version, enabled=True)
    assert worker.unwrap_key(WRAP_256, wrapped).key == bytes(64)


def rotate():
    officer = keys("officer")
    old = officer.get_key(name("versions"))
    new = officer.rotate_key(name("versions"))
    assert new.name == old.name and new.id != old.id and new.key.n != old.key.n and len(new.key.n) == 256
    assert officer.get_key(name("versions")).id == new.id


def rotation_policy():
    officer = keys("officer")
    before = officer.get_key_rotation_policy(name("versions"))
    assert [a.action for a in before.lifetime_actions] == [KeyRotationPolicyAction.notify], before.lifetime_actions
    assert before.lifetime_actions[0].time_before_expiry == "P30D" and before.expires_in is None
    actions = [KeyRotationLifetimeAction(KeyRotationPolicyAction.rotate, time_after_create="P2M"),
               KeyRotationLifetimeAction(KeyRotationPolicyAction.notify, time_before_expiry="P30D")]
    set_ = officer.update_key_rotation_policy(
        name("versions"), KeyRotationPolicy(), lifetime_actions=actions, expires_in="P90D")
    for policy in (set_, officer.get_key_rotation_policy(name("versions"))):
        assert policy.expires_in == "P90D" and policy.id.lower().endswith(name("versions") + "/rotationpolicy")
        said = {(str(a.action.value), a.time_after_create, a.time_before_expiry) for a in policy.lifetime_actions}
        assert {(a.lower(), c, b) for a, c, b in said} == {("rotate", "P2M", None), ("notify", None, "P30D")}, said
        assert policy.created_on and policy.updated_on
    days = (officer.rotate_key(name("versions")).properties.expires_on - now()).total_seconds() / 86400
    assert 89.9 < days < 90.1, days


def expired():
    officer = keys("officer")
    key = officer.create_rsa_key(name("old"), size=2048)
    worker = crypto(key, "worker")
    wrapped = worker.wrap_key(WRAP_256, bytes(64)).encrypted_key
    officer.update_key_properties(name("old"), expires_on=now() - timedelta(days=1))
    assert worker.unwrap_key(WRAP_256, wrapped).key == bytes(64), "an expired key must still unwrap"
    try:
        worker.wrap_key(WRAP_256, bytes(64))
    except HttpResponseError as e:
        assert (e.status_code, e.error.code) == (403, "Forbidden"), e
    else:
        raise AssertionError("an expired key wraps")
    assert sent("POST", "/wrapkey", 403) == 1, "not on the server"


def not_granted():
    nobody = keys("nobody")
    refused(403, "Forbidden", "ForbiddenByPolicy", nobody.get_key, name("kek"))
    refused(403, "Forbidden", "ForbiddenByPolicy", nobody.get_key, name("none"))  # nor does it say what there is
    refused(403, "Forbidden", "ForbiddenByPolicy", nobody.create_rsa_key, name("theirs"))
    refused(403, "Forbidden", "ForbiddenByPolicy", lambda: list(nobody.list_properties_of_keys()))
    key = keys("officer").get_key(name("kek")).id
    refused(403, "Forbidden", "ForbiddenByPolicy", crypto(key, "nobody").unwrap_key, WRAP_256, bytes(256))


def delete():
    officer = keys("officer")
    key = officer.get_key(name("kek"))
    poller = officer.begin_delete_key(name("kek"))
    poller.wait()
    gone = poller.result()
    assert gone.name == name("kek") and gone.recovery_id.endswith("/deletedkeys/" + name("kek"))
    assert 89 < (gone.scheduled_purge_date - gone.deleted_date).days < 91
    assert officer.get_deleted_key(name("kek")).id == key.id
    assert name("kek") in [k.name for k in officer.list_deleted_keys(max_page_size=1)]
    refused(404, "KeyNotFound", None, officer.get_key, name("kek"))
    refused(404, "KeyNotFound", None, crypto(key, "worker").unwrap_key, WRAP_256, bytes(256))
    refused(409, "Conflict", "ObjectIsDeletedButRecoverable", officer.create_rsa_key, name("kek"), size=2048)
    refused(409, "Conflict", "ObjectIsDeletedButRecoverable", officer.import_key, name("kek"), jwk(MINE))


def recover():
    officer = keys("officer")
    poller = officer.begin_recover_deleted_key(name("kek"))
    poller.wait()
    assert poller.result().name == name("kek") and officer.get_key(name("kek")).properties.enabled
    refused(404, "KeyNotFound", None, officer.get_deleted_key, name("kek"))


def purge():
    officer = keys("officer")
    officer.begin_delete_key(name("big")).wait()
    officer.purge_deleted_key(name("big"))
    assert sent("DELETE", "/deletedkeys/" + name("big"), 204) == 1
    refused(404, "KeyNotFound", None, officer.get_deleted_key, name("big"))
    assert officer.import_key(name("big"), jwk(MINE)).name == name("big"), "the name is free again"


def backup():
    officer = keys("officer")
    blob = officer.backup_key(name("versions"))
    kept = [p.version for p in officer.list_properties_of_key_versions(name("versions"))]
    refused(409, "Conflict", None, officer.restore_key_backup, blob)
    officer.begin_delete_key(name("versions")).wait()
    officer.purge_deleted_key(name("versions"))
    restored = officer.restore_key_backup(blob)
    assert restored.name == name("versions") and restored.properties.version == kept[-1]
    assert [p.version for p in officer.list_properties_of_key_versions(name("versions"))] == kept
    refused(400, "Malformed backup blob", None, officer.restore_key_backup, b"not a backup")


def random():
    first, second = (keys("worker").get_random_bytes(count=32) for _ in range(2))
    assert len(first) == 32 and first != second


def not_supported():
    officer = keys("officer")
    refused(400, "BadParameter", None, officer.create_ec_key, name("ec"))
    refused(400, "BadParameter", None, officer.create_rsa_key, name("hsm"), hardware_protected=True)
    refused(400, "BadParameter", None, officer.create_rsa_key, name("small"), size=1024)
    refused(400, "BadParameter", None, officer.release_key, name("kek"), "a token")
    refused(400, "BadParameter", None, officer.get_key_attestation, name("kek"))


def instance_metadata():
    """Where nothing is said of App Service, the SDK asks the instance metadata service, which has no secret."""
    assert keys("officer").import_key(name("imds"), jwk(MINE)).name == name("imds")
    assert sent("GET", "/metadata/identity/oauth2/token", 200) == 1


def untrusted():
    """Without our CA the SDK must not talk to the vault at all."""
    try:
        keys("officer").get_key("any")
    except ServiceRequestError as e:
        assert "CERTIFICATE_VERIFY_FAILED" in str(e), e
        return
    raise AssertionError("it trusts anybody")


STEPS = {
    "create": create, "import": import_, "get": get, "challenge": unauthenticated, "list": list_, "versions": versions,
    "update": update, "wrap and unwrap": wrap, "encrypt and decrypt": encrypt, "sign and verify": sign,
    "disable": disable, "rotate": rotate, "rotation policy": rotation_policy, "expired": expired,
    "not granted": not_granted, "delete": delete, "recover": recover, "purge": purge,
    "backup and restore": backup, "random bytes": random, "not supported": not_supported,
}


def main():
    failed = False
    steps = {"instance metadata": instance_metadata} if PLAN["credentials"] == "instance metadata" else STEPS
    for step, run in ({"untrusted": untrusted} if PLAN["untrusted"] else steps).items():
        SENT.clear()
        line = {"sdk": "python", "credentials": PLAN["credentials"], "step": step, "ok": True}
        try:
            run()
        except Exception:
            failed, line["ok"], line["error"] = True, False, traceback.format_exc(limit=4)
        print(json.dumps({**line, "requests": SENT}), flush=True)
    sys.exit(failed)


main()
