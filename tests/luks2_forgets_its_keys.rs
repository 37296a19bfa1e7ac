//! Question: do digest, MAC, key derivation and keyslots leave no copy of the volume key or of a passphrase outside of
//! guarded memory, and none at all once those are dropped?
//!
//! HMAC keeps its key xored with 0x36 and 0x5c, SHA-256 takes its message as big-endian words: either is the key to
//! whoever reads it, so these forms are looked for as well.
//! One test in this file: a second one at the same time would have keys of its own.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod memory_support;

use memory_support::{Hit, Needle, list, needles, search};
use wrapdisk::envelope::{Kid, WrapAlg, WrappedDek};
use wrapdisk::luks2::keyslot::{self, Kdf, Limits};
use wrapdisk::luks2::{Header, Holes, Kind, NewHeader};
use wrapdisk::secret::{Secret, SecretBytes, all_locked};
use wrapdisk::store::MemoryStore;
use wrapdisk::units::ByteLen;
use wrapdisk::xts::VolumeKey;
use zeroize::Zeroizing;

/// The secret itself, and the forms in which hashes and MACs hold it.
fn forms(secret: &[u8]) -> Vec<Needle> {
    let mut found = needles("plain", secret);
    // Wiped, or the search would find what it is to look for.
    let mut form = Zeroizing::new(secret.to_vec());
    for (pad, name) in [(0x36, "inner pad"), (0x5c, "outer pad")] {
        form.iter_mut().zip(secret).for_each(|(to, from)| *to = from ^ pad);
        found.extend(needles(name, &form));
    }
    form.copy_from_slice(secret);
    form.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    found.extend(needles("words", &form));
    found
}

/// Of the key that authenticates the header (ON-DISK section 5): whoever has it can forge one.
fn forms_of_mac_key(key: &VolumeKey) -> Vec<Needle> {
    let mut derived = Zeroizing::new([0; 32]);
    far_below(&mut || {
        let hkdf = hkdf::Hkdf::<sha2::Sha256>::new(None, key.secret().expose());
        hkdf.expand(b"wrapdisk luks2 header v1", derived.as_mut_slice()).unwrap();
    });
    far_below(&mut || wrapdisk::secret::scrubbed(|| ()));
    forms(derived.as_slice())
}

/// One use of a secret; the judge runs it and looks what is left.
type Judge<'a> = dyn Fn(&str, &mut dyn FnMut()) + 'a;

/// Runs `work` so deep in the stack that the search does not overwrite what it left there.
#[inline(never)]
fn far_below(work: &mut dyn FnMut()) {
    let mut distance = [0u8; 64 << 10];
    std::hint::black_box(&mut distance);
    work();
    std::hint::black_box(&mut distance);
}

/// Everything that this module does with a key and a passphrase, one after the other.
fn everything(key: &VolumeKey, passphrase: &SecretBytes, judge: &Judge<'_>) {
    let store = MemoryStore::new(0);
    let new = NewHeader {
        label: String::new(),
        kind: Kind::Disk,
        size: ByteLen::from(4096),
        holes: Holes::Zeros,
        discards: true,
        uuid: None,
    };
    let mut header = Header::create(&new, key).unwrap();
    judge("create", &mut || drop(Header::create(&new, key).unwrap()));
    judge("add a token", &mut || assert_eq!(header.add_token("s/x", wrapped(), key).unwrap(), 0));
    header.format(&store).unwrap();
    judge("check the digest", &mut || assert!(header.check_key(key)));
    judge("check the MAC", &mut || header.check_mac(0, key).unwrap());
    judge("verify", &mut || drop(header.verify(Some(0), key).unwrap()));
    judge("fingerprint", &mut || assert_ne!(Header::fingerprint(key), [0; 16]));
    for kdf in [
        Kdf::Pbkdf2Sha256 { iterations: 1000 },
        Kdf::Pbkdf2Sha512 { iterations: 1000 },
        Kdf::Argon2id { time: 1, memory: 1024, cpus: 2 },
    ] {
        let (mut id, limits) = (0, Limits::default());
        judge(&format!("add a keyslot, {kdf}"), &mut || {
            id = keyslot::add(&mut header, &store, key, passphrase.expose(), &kdf).unwrap();
        });
        judge(&format!("open a keyslot, {kdf}"), &mut || {
            let (_, again) = keyslot::unlock(&header, &store, passphrase.expose(), &limits).unwrap();
            assert!(again.secret().ct_eq(key.secret()));
        });
        judge(&format!("try a keyslot in vain, {kdf}"), &mut || {
            keyslot::unlock(&header, &store, b"wrong", &limits).unwrap_err();
        });
        keyslot::remove(&mut header, &store, id).unwrap();
    }
    judge("seal", &mut || header.seal(key).unwrap());
}

fn wrapped() -> WrappedDek {
    let kid = Kid::parse("https://h/keys/n/1").unwrap();
    WrappedDek { kid, alg: WrapAlg::RsaOaep256, bytes: vec![1; 256] }
}

#[track_caller]
fn only(forms: &[Needle], expected: usize, when: &str) {
    let hits = search("self", forms);
    let stray: Vec<_> = hits.iter().filter(|hit| !is_guarded(hit)).collect();
    assert!(stray.is_empty(), "{when}, in unguarded memory:\n{}", list(stray));
    assert_eq!(hits.len(), expected, "{when}:\n{}", list(&hits));
}

fn strays(forms: &[Needle]) -> usize {
    search("self", forms).iter().filter(|hit| !is_guarded(hit)).count()
}

fn is_guarded(hit: &Hit) -> bool {
    hit.mapping.is_undumped() && (hit.mapping.is_locked() || !all_locked())
}

#[test]
fn keys_and_passphrases_stay_in_guarded_memory_and_go() {
    let key = VolumeKey::generate().unwrap();
    // As long as an HMAC block, so that it is not hashed first.
    let mut passphrase = SecretBytes::zeroed(64).unwrap();
    passphrase.expose_mut().copy_from_slice(Secret::<64>::random().unwrap().expose());
    let (of_key, of_passphrase) = (forms(key.secret().expose()), forms(passphrase.expose()));
    only(&of_key, 4, "the key itself");
    only(&of_passphrase, 4, "the passphrase itself");
    for pad in [0, 0x36, 0x5c] {
        let mut planted = Zeroizing::new(*key.secret().expose());
        planted.iter_mut().for_each(|b| *b ^= pad);
        assert!(strays(&of_key) > 0, "what is planted is found: {pad:#x}");
    }
    far_below(&mut || {
        std::hint::black_box(&mut { *key.secret().expose() });
    });
    assert!(strays(&of_key) > 0, "also in the frame of a function that has returned");
    far_below(&mut || wrapdisk::secret::scrubbed(|| ()));
    let of_mac_key = forms_of_mac_key(&key);

    everything(&key, &passphrase, &|what, work| {
        far_below(work);
        only(&of_key, 4, &format!("the key, after: {what}"));
        only(&of_passphrase, 4, &format!("the passphrase, after: {what}"));
        only(&of_mac_key, 0, &format!("the key of the MAC, after: {what}"));
    });

    drop((key, passphrase));
    only(&of_key, 0, "the dropped key");
    only(&of_passphrase, 0, "the dropped passphrase");
}
