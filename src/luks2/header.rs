//! One container's header in memory: read, changed, and written back whole.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::binary::{self, BINARY_SIZE, Binary};
use super::copies::{self, Committed};
use super::fields::encode_base64;
use super::hash::Hash;
use super::keyslot::{Keyslot, KeyslotInfo};
use super::model::{Model, Segment};
use super::refuse::{damaged, unsupported};
use super::token::{self, Holes, Kind, Scope, Traits, VaultToken};
use crate::envelope::WrappedDek;
use crate::error::{Error, ErrorKind, Result};
use crate::secret;
use crate::store::BackingStore;
use crate::units::{ByteLen, ByteOffset};
use crate::xts::VolumeKey;

/// First byte of the data in a new container: cryptsetup's own default geometry.
pub(super) const DATA_OFFSET: u64 = 16 << 20;
const DIGEST_ITERATIONS: u32 = 1000;

/// What a new container is to be.
#[derive(Clone, Debug)]
pub struct NewHeader {
    /// At most 47 printable bytes.
    pub label: String,
    /// Disk, snapshot or image.
    pub kind: Kind,
    /// Plaintext bytes, a positive multiple of 512.
    pub size: ByteLen,
    /// What an all-zero sector means.
    pub holes: Holes,
    /// Discards free space.
    pub discards: bool,
    /// `None`: a random one.
    pub uuid: Option<Uuid>,
}

/// A valid header.
#[derive(Clone, Debug)]
pub struct Header {
    pub(super) binary: Binary,
    pub(super) json: Map<String, Value>,
    pub(super) model: Model,
    /// For a plain container: what the store's length leaves.
    plain_size: ByteLen,
    /// Of a header that has no token yet: what its tokens will say.
    new_traits: Option<Traits>,
    warnings: Vec<String>,
    copies_differ: bool,
}

impl Header {
    /// A header in memory; [`Header::format`] writes it.
    ///
    /// # Errors
    /// `InvalidInput` for a bad size or label.
    pub fn create(new: &NewHeader, key: &VolumeKey) -> Result<Self> {
        binary::check_label(&new.label)?;
        if new.size.is_zero() || !new.size.get().is_multiple_of(512) {
            let message = format!("size: found {} bytes, allowed a positive multiple of 512", new.size);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        if new.size.round_up(4096).and_then(|s| ByteLen::new(s.get() + DATA_OFFSET)).is_none() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("size: found {} bytes, allowed less than 8 EiB", new.size),
            ));
        }
        let mut salt = [0; 32];
        secret::random(&mut salt)?;
        let flags: &[&str] = if new.discards { &["allow-discards"] } else { &[] };
        let mut config = json!({ "json_size": (binary::DEFAULT_SIZE - BINARY_SIZE as u64).to_string(),
            "keyslots_size": (DATA_OFFSET - 2 * binary::DEFAULT_SIZE).to_string() });
        if !flags.is_empty() {
            config["flags"] = json!(flags);
        }
        let json = json!({
            "keyslots": {},
            "tokens": {},
            "segments": { "0": { "type": "crypt", "offset": DATA_OFFSET.to_string(), "size": "dynamic", "iv_tweak": "0",
                "encryption": "aes-xts-plain64", "sector_size": 4096 } },
            "digests": { "0": { "type": "pbkdf2", "keyslots": [], "segments": ["0"], "hash": "sha256",
                "iterations": DIGEST_ITERATIONS, "salt": encode_base64(&salt),
                "digest": encode_base64(&digest_of(key, Hash::Sha256, &salt, DIGEST_ITERATIONS)) } },
            "config": config,
        });
        let Value::Object(json) = json else { unreachable!("an object literal") };
        let binary = Binary {
            hdr_size: binary::DEFAULT_SIZE,
            seqid: 0,
            label: new.label.clone(),
            uuid: new.uuid.unwrap_or_else(Uuid::new_v4).hyphenated().to_string(),
            subsystem: "wrapdisk".to_owned(),
        };
        let model = Model::parse(&json, binary.hdr_size)?;
        let traits = Traits { kind: new.kind, size: new.size, holes: new.holes };
        Ok(Self {
            binary,
            json,
            model,
            plain_size: ByteLen::ZERO,
            new_traits: Some(traits),
            warnings: Vec::new(),
            copies_differ: false,
        })
    }

    /// Reads, chooses a copy, and refuses what ON-DISK section 8 lists. Writes nothing.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Io`.
    pub fn load(store: &dyn BackingStore) -> Result<Self> {
        Self::load_area(store, store.len()?)
    }

    /// As [`Header::load`], of a store that holds only the header area of a container of `len` bytes.
    pub(super) fn load_area(store: &dyn BackingStore, len: ByteLen) -> Result<Self> {
        let chosen = copies::choose(store)?;
        let (json, model) = chosen.interpret()?;
        let capacity = len.get().saturating_sub(model.segment.offset.get());
        let unit = model.segment.sector_size.bytes();
        let header = Self {
            binary: chosen.binary,
            json,
            model,
            plain_size: ByteLen::new(capacity / unit * unit).expect("shorter than the store"),
            new_traits: None,
            warnings: chosen.warnings,
            copies_differ: chosen.stale,
        };
        let needed = header.size().round_up(unit).map_or(u64::MAX, ByteLen::get);
        if capacity < needed || header.size().is_zero() {
            return Err(damaged(
                "size",
                format!("{capacity} bytes of data"),
                format!("at least {needed}: the file is truncated"),
            ));
        }
        Ok(header)
    }

    /// Gives an empty store the length of this container, or finds out that a device is long enough.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn reserve(&self, store: &dyn BackingStore) -> Result<()> {
        let size = self.size().round_up(self.model.segment.sector_size.bytes());
        let end = size.and_then(|size| self.model.segment.offset.checked_add(size));
        let end = end.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "size: too large"))?;
        let len = ByteLen::new(end.get()).expect("an offset is a length");
        match store.set_len(len) {
            Err(e) if e.kind() == ErrorKind::Unsupported && store.len()? >= len => Ok(()),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                let message = format!("the device has {} bytes, the container needs {len}", store.len()?);
                Err(Error::new(ErrorKind::NoSpace, message))
            }
            done => done,
        }
    }

    /// Makes an empty store into this container: length, both copies. Nothing else is written, so a file stays sparse;
    /// on a device, the keyslots area keeps what was there until a keyslot uses it.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn format(&mut self, store: &dyn BackingStore) -> Result<()> {
        self.reserve(store)?;
        let text = self.text();
        copies::write_first(store, &mut self.binary, &text)
    }

    /// What was odd when it was read: copies that differ, a torn one.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// 36 characters.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.binary.uuid
    }

    /// For people.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.binary.label
    }

    /// Who made it: `wrapdisk` is what we write.
    #[must_use]
    pub fn subsystem(&self) -> &str {
        &self.binary.subsystem
    }

    /// Counts commits.
    #[must_use]
    pub const fn seqid(&self) -> u64 {
        self.binary.seqid
    }

    fn traits(&self) -> Option<Traits> {
        self.model.tokens.values().next().map(|t| t.traits).or(self.new_traits)
    }

    /// Disk where no token says otherwise.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.traits().map_or(Kind::Disk, |t| t.kind)
    }

    /// Plaintext bytes.
    #[must_use]
    pub fn size(&self) -> ByteLen {
        self.traits().map_or(self.plain_size, |t| t.size)
    }

    /// What an all-zero sector means; `None` in a plain container.
    #[must_use]
    pub fn holes(&self) -> Holes {
        self.traits().map_or(Holes::None, |t| t.holes)
    }

    /// True when discards may free space.
    #[must_use]
    pub const fn discards(&self) -> bool {
        self.model.discards
    }

    /// Where the data lies.
    #[must_use]
    pub const fn segment(&self) -> Segment {
        self.model.segment
    }

    /// True without a token of ours: made by cryptsetup.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.traits().is_none()
    }

    /// Our tokens, by number.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, &VaultToken)> {
        self.model.tokens.iter().map(|(id, token)| (*id, token))
    }

    /// Number and type of everybody else's tokens.
    #[must_use]
    pub fn foreign_tokens(&self) -> &[(u32, String)] {
        &self.model.foreign
    }

    /// The keyslots, by number.
    #[must_use]
    pub fn keyslots(&self) -> Vec<KeyslotInfo> {
        self.model.keyslots.iter().map(|(id, slot)| slot.info(*id)).collect()
    }

    pub(super) fn slots(&self) -> &BTreeMap<u32, Keyslot> {
        &self.model.keyslots
    }

    /// Is it the volume key? (The digest; constant time.)
    #[must_use]
    pub fn check_key(&self, key: &VolumeKey) -> bool {
        let digest = &self.model.digest;
        let computed = digest_of(key, digest.hash, &digest.salt, digest.iterations);
        // A digest that comes from LUKS1 is the beginning of it.
        computed[..digest.digest.len()].ct_eq(&digest.digest).into()
    }

    /// Is the MAC of this token good?
    ///
    /// # Errors
    /// `Damaged`.
    pub fn check_mac(&self, id: u32, key: &VolumeKey) -> Result<()> {
        let token =
            self.model.tokens.get(&id).ok_or_else(|| damaged("tokens", "nothing", format!("token {id}")))?;
        if token.mac_is_good(&self.scope(), key)? {
            return Ok(());
        }
        Err(damaged(format!("tokens.{id}.wrapdisk-mac"), "another one", "the MAC of this header").hint(
            "the header was changed by something that does not hold the key; if cryptsetup luksUUID changed the uuid, set the old one back",
        ))
    }

    /// Every check after an unlock, in the order of section 5: digest, MAC of the token that was used, then the others',
    /// whose failures are warnings only (they are never used).
    ///
    /// # Errors
    /// `WrongKey` without a token (a passphrase), `Damaged` with one.
    pub fn verify(&self, used: Option<u32>, key: &VolumeKey) -> Result<Vec<String>> {
        if !self.check_key(key) {
            return Err(match used {
                Some(id) => {
                    damaged(format!("tokens.{id}"), "another key than the digest's", "the volume key")
                }
                None => Error::new(ErrorKind::WrongKey, "the key does not open this container"),
            });
        }
        if let Some(id) = used {
            self.check_mac(id, key)?;
        }
        let others = self.model.tokens.keys().filter(|id| Some(**id) != used);
        let bad: Vec<Error> = others.filter_map(|id| self.check_mac(*id, key).err()).collect();
        if used.is_none() && !bad.is_empty() && bad.len() == self.model.tokens.len() {
            return Err(bad.into_iter().next().expect("not empty"));
        }
        Ok(bad.iter().map(ToString::to_string).collect())
    }

    fn scope(&self) -> Scope<'_> {
        Scope { uuid: &self.binary.uuid, segment: self.model.segment, digest: &self.model.digest }
    }

    /// Adds a token under the lowest free number.
    ///
    /// # Errors
    /// `Unsupported` when eight are there or the header is full.
    pub fn add_token(&mut self, set: &str, wrapped: WrappedDek, key: &VolumeKey) -> Result<u32> {
        let traits =
            self.traits().unwrap_or(Traits { kind: Kind::Disk, size: self.plain_size, holes: Holes::None });
        if self.model.tokens.len() >= token::MAX_TOKENS {
            let found = format!("{} of ours", self.model.tokens.len());
            return Err(unsupported("tokens", found, format!("less than {} to add one", token::MAX_TOKENS)));
        }
        let token = VaultToken::new(set, wrapped, traits, &self.scope(), key)?;
        let used = self.json["tokens"].as_object().expect("checked when parsed");
        let id = (0..32).find(|id| !used.contains_key(&id.to_string()));
        let id = id.ok_or_else(|| unsupported("tokens", "32 members", "less than 32 to add one"))?;
        self.change(|json| json["tokens"][id.to_string()] = token.to_json())?;
        Ok(id)
    }

    /// Removes one of our tokens.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for the last one, which would make it a plain container.
    pub fn remove_token(&mut self, id: u32) -> Result<()> {
        if !self.model.tokens.contains_key(&id) {
            return Err(Error::new(ErrorKind::NotFound, format!("no token {id}")));
        }
        if self.model.tokens.len() == 1 {
            return Err(Error::new(ErrorKind::InvalidInput, format!("token {id} is the last one")));
        }
        self.change(|json| {
            json["tokens"].as_object_mut().map(|tokens| tokens.shift_remove(&id.to_string()));
        })
    }

    /// Holes become `none`, discards go, every MAC is made anew. The caller has filled the holes. A token whose MAC is bad
    /// goes too: a new MAC would make somebody's forgery good.
    ///
    /// # Errors
    /// `WrongKey`; `Damaged` when no token is good.
    pub fn seal(&mut self, key: &VolumeKey) -> Result<()> {
        self.verify(None, key)?;
        let (mut sealed, mut forged) = (Vec::new(), Vec::new());
        for (id, token) in &self.model.tokens {
            if let Err(e) = self.check_mac(*id, key) {
                log::warn!("token {id} is removed: {e}");
                forged.push(id.to_string());
                continue;
            }
            let traits = Traits { holes: Holes::None, ..token.traits };
            sealed.push((
                *id,
                VaultToken::new(token.set(), token.wrapped().clone(), traits, &self.scope(), key)?,
            ));
        }
        self.change(|json| {
            for id in &forged {
                json["tokens"].as_object_mut().map(|tokens| tokens.shift_remove(id));
            }
            for (id, token) in &sealed {
                let value = &mut json["tokens"][id.to_string()];
                for (name, new) in token.to_json().as_object().into_iter().flatten() {
                    if name.starts_with("wrapdisk-") {
                        value[name] = new.clone();
                    }
                }
            }
            if let Some(Value::Array(flags)) = json["config"].get_mut("flags") {
                flags.retain(|f| f != "allow-discards");
            }
        })
    }

    /// Applies a change to the JSON, and takes it back when the result is not what we would read.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
        let mut json = self.json.clone();
        change(&mut json);
        let text = serde_json::to_string(&json).expect("a map of values always encodes");
        self.binary.check_fits(text.len())?;
        self.model = Model::parse(&json, self.binary.hdr_size)?;
        self.json = json;
        Ok(())
    }

    /// Compact, members in the order they were read.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(&self.json).expect("a map of values always encodes")
    }

    /// Writes both copies (ON-DISK section 7). A stale secondary is no failure, and is logged: the next writable open
    /// repairs it.
    ///
    /// # Errors
    /// `Conflict` when somebody else committed meanwhile; `Io`, `NoSpace`: the outcome is unknown.
    pub fn commit(&mut self, store: &dyn BackingStore) -> Result<Committed> {
        let text = self.text();
        let committed = copies::commit(store, &mut self.binary, &text)?;
        if let Committed::SecondaryStale(e) = &committed {
            log::warn!("committed, secondary copy is stale: {}", e.chain());
        }
        Ok(committed)
    }

    /// Rewrites the losing copy from the winner, when they differed. Returns whether it did.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn repair_copies(&self, store: &dyn BackingStore) -> Result<bool> {
        if self.copies_differ {
            copies::repair(store)?;
        }
        Ok(self.copies_differ)
    }

    /// Bytes of the header area, copies and keyslots: what a backup holds.
    #[must_use]
    pub fn area_len(&self) -> ByteLen {
        ByteLen::new(2 * self.binary.hdr_size + self.model.keyslots_size)
            .expect("at most 128 MiB and 256 KiB")
    }

    /// The start of the keyslots area.
    pub(super) fn keyslots_start(&self) -> ByteOffset {
        ByteOffset::new(2 * self.binary.hdr_size).expect("at most 256 KiB")
    }

    /// What the registry pins of a key: not secret, and in no container.
    #[must_use]
    pub fn fingerprint(key: &VolumeKey) -> [u8; 16] {
        let mut fingerprint = [0; 16];
        token::expand(key, b"wrapdisk key fingerprint v1", &mut fingerprint);
        fingerprint
    }

    /// The JSON, indented. What is not ASCII is escaped: a terminal obeys some of it.
    #[must_use]
    pub fn dump_json(&self) -> String {
        let text = serde_json::to_string_pretty(&self.json).expect("a map of values always encodes");
        let mut shown = String::with_capacity(text.len());
        for c in text.chars() {
            // Anything odd is inside a string, where JSON takes escapes.
            match c {
                '\n' | ' '..='~' => shown.push(c),
                _ => shown.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
            }
        }
        shown
    }
}

/// PBKDF2 over the volume key.
fn digest_of(key: &VolumeKey, hash: Hash, salt: &[u8], iterations: u32) -> Vec<u8> {
    let mut digest = vec![0; hash.len()];
    secret::scrubbed(|| hash.pbkdf2(key.secret().expose(), salt, iterations, &mut digest));
    digest
}
