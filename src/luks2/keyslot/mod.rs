//! Keyslots: the volume key under a passphrase, split and encrypted as LUKS2 does it (ON-DISK section 9).

use std::fmt;

use serde_json::{Value, json};

use super::fields::{Fields, encode_base64};
use super::hash::Hash;
use super::header::Header;
use super::model::Model;
use super::refuse::{damaged, quoted, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{self, Secret, SecretBytes};
use crate::store::BackingStore;
use crate::units::{ByteOffset, Extent, Sector, SectorSize};
use crate::xts::{Engine, VolumeKey, XtsCipher};

mod af;
mod kdf;

pub use kdf::{Kdf, Limits, default_kdf};

const KEY_SIZE: usize = 64;
/// Bytes of an area that we write: the split key rounded up to 4096.
const AREA_SIZE: u64 = 258_048;

/// A valid keyslot object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keyslot {
    pub(super) area: Extent,
    priority: u32,
    af: Hash,
    kdf: Kdf,
    salt: Vec<u8>,
}

/// What may be told of a keyslot.
#[derive(Clone, Debug)]
pub struct KeyslotInfo {
    /// Its number.
    pub id: u32,
    /// How the passphrase is stretched.
    pub kdf: Kdf,
    /// 0 ignored by default, 1 normal, 2 preferred.
    pub priority: u32,
}

impl Keyslot {
    pub(super) fn parse(id: u32, value: &Value) -> Result<Self> {
        let slot = Fields::new(format!("keyslots.{id}"), value)?;
        slot.only(&["type", "key_size", "priority", "af", "area", "kdf"])?;
        is(&slot, "type", "luks2")?;
        key_size(&slot)?;
        let priority = match slot.optional("priority") {
            None => 1,
            Some(_) => slot.integer("priority")?,
        };
        if priority > 2 {
            return Err(damaged(slot.path("priority"), priority, "0, 1 or 2"));
        }
        let af = slot.object("af")?;
        af.only(&["type", "stripes", "hash"])?;
        is(&af, "type", "luks1")?;
        let hash = Hash::parse(&af)?;
        let stripes = af.integer("stripes")?;
        if usize::try_from(stripes) != Ok(af::STRIPES) {
            return Err(unsupported(af.path("stripes"), stripes, af::STRIPES));
        }
        let (kdf, salt) = Kdf::parse(&slot.object("kdf")?)?;
        Ok(Self { area: area(&slot.object("area")?)?, priority, af: hash, kdf, salt })
    }

    pub(super) fn info(&self, id: u32) -> KeyslotInfo {
        KeyslotInfo { id, kdf: self.kdf, priority: self.priority }
    }

    fn to_json(&self) -> Value {
        json!({
            "type": "luks2", "key_size": KEY_SIZE,
            "af": { "type": "luks1", "stripes": af::STRIPES, "hash": self.af.name() },
            "area": { "type": "raw", "offset": self.area.start().to_string(), "size": self.area.len().to_string(),
                "encryption": "aes-xts-plain64", "key_size": KEY_SIZE },
            "kdf": self.kdf.to_json(&encode_base64(&self.salt)),
        })
    }

    /// The cipher of the area.
    fn cipher(&self, passphrase: &[u8]) -> Result<XtsCipher> {
        let key: Secret<KEY_SIZE> = self.kdf.derive(passphrase, &self.salt)?;
        XtsCipher::new(&VolumeKey::new(key)?, SectorSize::B512, Engine::best())
    }

    fn open(&self, store: &dyn BackingStore, passphrase: &[u8]) -> Result<VolumeKey> {
        let mut split = SecretBytes::zeroed(af::SPLIT_SIZE)?;
        store.read_at(self.area.start(), split.expose_mut())?;
        self.cipher(passphrase)?.decrypt(Sector::ZERO, split.expose_mut());
        VolumeKey::new(af::merge(split.expose(), self.af)?)
    }
}

fn is(fields: &Fields<'_>, name: &str, allowed: &str) -> Result<()> {
    match fields.string(name)? {
        found if found == allowed => Ok(()),
        found => Err(unsupported(fields.path(name), quoted(found), quoted(allowed))),
    }
}

fn key_size(fields: &Fields<'_>) -> Result<()> {
    match fields.integer("key_size")? {
        64 => Ok(()),
        found => Err(unsupported(fields.path("key_size"), found, 64)),
    }
}

fn area(area: &Fields<'_>) -> Result<Extent> {
    area.only(&["type", "offset", "size", "encryption", "key_size"])?;
    is(area, "type", "raw")?;
    is(area, "encryption", "aes-xts-plain64")?;
    key_size(area)?;
    let (offset, size) = (area.u64s("offset")?, area.u64s("size")?);
    if size < af::SPLIT_SIZE as u64 {
        return Err(damaged(area.path("size"), size, format!("at least {}", af::SPLIT_SIZE)));
    }
    if !offset.is_multiple_of(4096) {
        return Err(damaged(area.path("offset"), offset, "a multiple of 4096"));
    }
    Extent::from_raw(offset, size).ok_or_else(|| damaged(area.path("offset"), offset, "an end below 2^63"))
}

impl fmt::Display for KeyslotInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keyslot {}: {}", self.id, self.kdf)
    }
}

/// Tries every keyslot: preferred ones first, those of priority 0 last. A slot whose cost is above the limits is passed
/// over, and named when nothing else opens.
///
/// # Errors
/// `WrongKey` when none fits; `Unsupported` when one that was passed over might have.
pub fn unlock(
    header: &Header,
    store: &dyn BackingStore,
    passphrase: &[u8],
    limits: &Limits,
) -> Result<(u32, VolumeKey)> {
    let mut order: Vec<_> = header.slots().iter().collect();
    order.sort_by_key(|(id, slot)| (std::cmp::Reverse(slot.priority), **id));
    let mut refused = None;
    for (id, slot) in order {
        if let Err(e) = limits.allow(&slot.kdf, *id) {
            refused = Some(e);
            continue;
        }
        match slot.open(store, passphrase) {
            Ok(key) if header.check_key(&key) => return Ok((*id, key)),
            Ok(_) => {}
            // key1 == key2 after a wrong passphrase is as good as impossible, and as wrong.
            Err(e) if e.kind() == ErrorKind::Damaged => {}
            Err(e) => return Err(e),
        }
    }
    if let Some(e) = refused {
        return Err(e);
    }
    Err(if header.slots().is_empty() {
        Error::new(ErrorKind::WrongKey, "keyslots: found none, so no passphrase opens it")
            .hint("open it through its vault, without --passphrase")
    } else {
        Error::new(ErrorKind::WrongKey, "no keyslot opens with this passphrase")
    })
}

/// Adds a keyslot: its area is written and synced before the header that names it. After a failure, `header` is what it
/// was.
///
/// # Errors
/// `Unsupported` when there is no room, `WrongKey`, `Io`, `NoSpace`, `Conflict`.
pub fn add(
    header: &mut Header,
    store: &dyn BackingStore,
    key: &VolumeKey,
    passphrase: &[u8],
    kdf: &Kdf,
) -> Result<u32> {
    if !header.check_key(key) {
        return Err(Error::new(ErrorKind::WrongKey, "the key does not open this container"));
    }
    let mut salt = vec![0; 32];
    secret::random(&mut salt)?;
    let id = (0..32).find(|id| !header.slots().contains_key(id));
    let id = id.ok_or_else(|| unsupported("keyslots", "32 members", "at most 32"))?;
    let area = free_area(&header.model, header.keyslots_start())?;
    let slot = Keyslot { area, priority: 1, af: Hash::Sha256, kdf: *kdf, salt };
    let mut next = header.clone();
    let digest = header.model.digest.name.clone();
    next.change(|json| {
        json["keyslots"][id.to_string()] = slot.to_json();
        if let Some(names) = json["digests"][&digest]["keyslots"].as_array_mut() {
            names.push(Value::from(id.to_string()));
        }
    })?;
    let mut split = af::split(key.secret(), slot.af)?;
    slot.cipher(passphrase)?.encrypt(Sector::ZERO, split.expose_mut());
    store.write_at(slot.area.start(), split.expose())?;
    store.sync()?;
    next.commit(store)?;
    *header = next;
    Ok(id)
}

/// Removes a keyslot: its area is overwritten first, so that a crash never leaves a working slot nobody lists. Tokens
/// (anybody's) forget it too: cryptsetup refuses a header whose token names a keyslot that is not there. After a failure,
/// `header` is what it was.
///
/// # Errors
/// `NotFound`, `Io`, `Conflict`.
pub fn remove(header: &mut Header, store: &dyn BackingStore, id: u32) -> Result<()> {
    let slot =
        header.slots().get(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no keyslot {id}")))?;
    let name = id.to_string();
    let mut next = header.clone();
    next.change(|json| {
        json["keyslots"].as_object_mut().map(|slots| slots.shift_remove(&name));
        for holders in ["digests", "tokens"] {
            for (_, holder) in json[holders].as_object_mut().into_iter().flatten() {
                if let Some(names) = holder["keyslots"].as_array_mut() {
                    names.retain(|n| n != &name);
                }
            }
        }
    })?;
    overwrite(store, slot.area)?;
    next.commit(store)?;
    *header = next;
    Ok(())
}

/// Random bytes over an extent, then a sync.
pub(super) fn overwrite(store: &dyn BackingStore, extent: Extent) -> Result<()> {
    let mut noise = vec![0; 64 * 1024];
    for chunk in extent.chunks(64 * 1024) {
        let noise = &mut noise[..chunk.len().to_usize().expect("at most 64 KiB")];
        secret::random(noise)?;
        store.write_at(chunk.start(), noise)?;
    }
    store.sync()
}

/// First fit.
fn free_area(model: &Model, start: ByteOffset) -> Result<Extent> {
    let end = start.get() + model.keyslots_size;
    let mut at = start.get();
    loop {
        let area = Extent::from_raw(at, AREA_SIZE).filter(|a| a.end().get() <= end);
        let area =
            area.ok_or_else(|| unsupported("keyslots area", "no room", format!("{AREA_SIZE} free bytes")))?;
        match model.keyslots.values().find(|s| s.area.overlaps(area)) {
            Some(taken) => at = taken.area.end().get().next_multiple_of(4096),
            None => return Ok(area),
        }
    }
}

/// A recovery key of 256 bits: 64 modhex characters in eight groups, the same letters on every keyboard.
///
/// # Errors
/// No memory, or no random generator.
pub fn recovery_key() -> Result<SecretBytes> {
    const MODHEX: &[u8; 16] = b"cbdefghijklnrtuv";
    let bits = Secret::<32>::random()?;
    let mut text = SecretBytes::zeroed(64 + 7)?;
    let out = text.expose_mut();
    let mut at = 0;
    for (i, byte) in bits.expose().iter().enumerate() {
        if i > 0 && i % 4 == 0 {
            out[at] = b'-';
            at += 1;
        }
        for nibble in [byte >> 4, byte & 15] {
            out[at] = MODHEX[usize::from(nibble)];
            at += 1;
        }
    }
    Ok(text)
}
