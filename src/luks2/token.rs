//! Our token, `wrapdisk-vault`: the data key under one key version (ON-DISK section 4), and its MAC (section 5).

use std::collections::BTreeMap;
use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::fields::{Fields, encode_base64};
use super::json::number_name;
use super::keyslot::Keyslot;
use super::model::{Digest, Segment};
use super::refuse::{damaged, quoted, unsupported};
use crate::envelope::{Kid, WrapAlg, WrappedDek};
use crate::error::Result;
use crate::secret::{Secret, scrubbed};
use crate::units::ByteLen;
use crate::xts::VolumeKey;

pub(super) const TYPE: &str = "wrapdisk-vault";
/// Most tokens of ours in one header: they fit its JSON area even with RSA-4096.
pub(super) const MAX_TOKENS: usize = 8;

const MEMBERS: &[&str] = &[
    "wrapdisk-version",
    "wrapdisk-kind",
    "wrapdisk-size",
    "wrapdisk-holes",
    "wrapdisk-set",
    "wrapdisk-kid",
    "wrapdisk-alg",
    "wrapdisk-wrapped-dek",
    "wrapdisk-mac",
];

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A disk to read and write.
    Disk,
    /// Mounted read-only.
    Snapshot,
    /// A read-only source of new disks.
    Image,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        })
    }
}

/// What an all-zero ciphertext sector means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holes {
    /// It reads as zeros.
    Zeros,
    /// It is decrypted, as dm-crypt does.
    None,
}

impl fmt::Display for Holes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zeros => "zeros",
            Self::None => "none",
        })
    }
}

/// What all tokens of one container say alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits {
    pub(super) kind: Kind,
    pub(super) size: ByteLen,
    pub(super) holes: Holes,
}

/// One token: a wrapped data key and the set it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultToken {
    pub(super) traits: Traits,
    set: String,
    wrapped: WrappedDek,
    mac: [u8; 32],
}

impl VaultToken {
    /// `NAME/UUID` of the disk encryption set; the name is for people.
    #[must_use]
    pub fn set(&self) -> &str {
        &self.set
    }

    /// The set's uuid, when the label ends with one.
    #[must_use]
    pub fn set_id(&self) -> Option<Uuid> {
        Uuid::try_parse(self.set.rsplit_once('/')?.1).ok()
    }

    /// The data key under its key version.
    #[must_use]
    pub const fn wrapped(&self) -> &WrappedDek {
        &self.wrapped
    }

    pub(super) fn parse(fields: &Fields<'_>, keyslots: &BTreeMap<u32, Keyslot>) -> Result<Self> {
        let version = fields.integer("wrapdisk-version")?;
        if version != 1 {
            return Err(
                unsupported(fields.path("wrapdisk-version"), version, 1).hint("a newer wrapdisk may open it")
            );
        }
        fields.only_of("wrapdisk-", MEMBERS)?;
        for name in fields.names("keyslots")? {
            if number_name(name).is_none_or(|n| !keyslots.contains_key(&n)) {
                return Err(damaged(fields.path("keyslots"), quoted(name), "names of keyslots"));
            }
        }
        let set = fields.string("wrapdisk-set")?;
        check_set(set)
            .map_err(|()| damaged(fields.path("wrapdisk-set"), quoted(set), "1 to 128 of [A-Za-z0-9._/-]"))?;
        let kid = fields.string("wrapdisk-kid")?;
        let alg = fields.string("wrapdisk-alg")?;
        if alg != WrapAlg::RsaOaep256.name() {
            return Err(unsupported(
                fields.path("wrapdisk-alg"),
                quoted(alg),
                quoted(WrapAlg::RsaOaep256.name()),
            ));
        }
        let bytes = fields.base64("wrapdisk-wrapped-dek", 0..=usize::MAX)?;
        if ![256, 384, 512].contains(&bytes.len()) {
            return Err(damaged(
                fields.path("wrapdisk-wrapped-dek"),
                format!("{} bytes", bytes.len()),
                "256, 384 or 512",
            ));
        }
        let kid = Kid::parse(kid).map_err(|_| {
            damaged(fields.path("wrapdisk-kid"), quoted(kid), "https://HOST[:PORT]/keys/NAME/VERSION")
        })?;
        let mac = fields.base64("wrapdisk-mac", 32..=32)?;
        Ok(Self {
            traits: parse_traits(fields)?,
            set: set.to_owned(),
            wrapped: WrappedDek { kid, alg: WrapAlg::RsaOaep256, bytes },
            mac: mac.try_into().expect("32 bytes, as asked for"),
        })
    }

    /// A token with its MAC.
    pub(super) fn new(
        set: &str,
        wrapped: WrappedDek,
        traits: Traits,
        scope: &Scope<'_>,
        key: &VolumeKey,
    ) -> Result<Self> {
        check_set(set).map_err(|()| damaged("set", quoted(set), "1 to 128 of [A-Za-z0-9._/-]"))?;
        let mut token = Self { traits, set: set.to_owned(), wrapped, mac: [0; 32] };
        token.mac = scope.mac(&token, key)?;
        Ok(token)
    }

    /// Constant-time comparison with what the key says.
    pub(super) fn mac_is_good(&self, scope: &Scope<'_>, key: &VolumeKey) -> Result<bool> {
        Ok(scope.mac(self, key)?.ct_eq(&self.mac).into())
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "type": TYPE,
            "keyslots": [],
            "wrapdisk-version": 1,
            "wrapdisk-kind": self.traits.kind.to_string(),
            "wrapdisk-size": self.traits.size.to_string(),
            "wrapdisk-holes": self.traits.holes.to_string(),
            "wrapdisk-set": self.set,
            "wrapdisk-kid": self.wrapped.kid.as_str(),
            "wrapdisk-alg": self.wrapped.alg.name(),
            "wrapdisk-wrapped-dek": encode_base64(&self.wrapped.bytes),
            "wrapdisk-mac": encode_base64(&self.mac),
        })
    }
}

fn parse_traits(fields: &Fields<'_>) -> Result<Traits> {
    let kind = match fields.string("wrapdisk-kind")? {
        "disk" => Kind::Disk,
        "snapshot" => Kind::Snapshot,
        "image" => Kind::Image,
        other => {
            return Err(unsupported(fields.path("wrapdisk-kind"), quoted(other), "disk, snapshot or image"));
        }
    };
    let holes = match fields.string("wrapdisk-holes")? {
        "zeros" => Holes::Zeros,
        "none" => Holes::None,
        other => return Err(unsupported(fields.path("wrapdisk-holes"), quoted(other), "zeros or none")),
    };
    let size = fields.u64s("wrapdisk-size")?;
    match ByteLen::new(size).filter(|s| !s.is_zero() && s.get().is_multiple_of(512)) {
        Some(size) => Ok(Traits { kind, size, holes }),
        None => Err(damaged(fields.path("wrapdisk-size"), size, "a positive multiple of 512")),
    }
}

fn check_set(set: &str) -> std::result::Result<(), ()> {
    let good = (1..=128).contains(&set.len())
        && set.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
    good.then_some(()).ok_or(())
}

/// At most eight, and of one mind about kind, size and holes.
pub(super) fn check_agreement(tokens: &BTreeMap<u32, VaultToken>) -> Result<()> {
    if tokens.len() > MAX_TOKENS {
        return Err(damaged("tokens", format!("{} of ours", tokens.len()), "at most 8"));
    }
    let mut all = tokens.iter();
    let Some((first, model)) = all.next() else { return Ok(()) };
    match all.find(|(_, t)| t.traits != model.traits) {
        None => Ok(()),
        Some((id, _)) => Err(damaged(
            format!("tokens.{id}"),
            "another kind, size or holes",
            format!("the same as in tokens.{first}"),
        )),
    }
}

/// What a MAC covers besides the token itself.
pub(super) struct Scope<'a> {
    pub(super) uuid: &'a str,
    pub(super) segment: Segment,
    pub(super) digest: &'a Digest,
}

impl Scope<'_> {
    fn mac(&self, token: &VaultToken, key: &VolumeKey) -> Result<[u8; 32]> {
        let mac_key = derive::<32>(key, b"wrapdisk luks2 header v1")?;
        Ok(scrubbed(|| {
            let mut mac =
                <Hmac<Sha256> as KeyInit>::new_from_slice(mac_key.expose()).expect("HMAC takes any key");
            mac.update(self.message(token).as_bytes());
            mac.finalize().into_bytes().into()
        }))
    }

    /// The twenty lines of section 5.
    fn message(&self, token: &VaultToken) -> String {
        let lines = [
            ("uuid", self.uuid.to_owned()),
            ("kind", token.traits.kind.to_string()),
            ("size", token.traits.size.to_string()),
            ("holes", token.traits.holes.to_string()),
            ("segment.type", "crypt".to_owned()),
            ("segment.offset", self.segment.offset.to_string()),
            ("segment.size", "dynamic".to_owned()),
            ("segment.iv_tweak", "0".to_owned()),
            ("segment.encryption", "aes-xts-plain64".to_owned()),
            ("segment.sector_size", self.segment.sector_size.bytes().to_string()),
            ("digest.type", "pbkdf2".to_owned()),
            ("digest.hash", self.digest.hash.name().to_owned()),
            ("digest.iterations", self.digest.iterations.to_string()),
            ("digest.salt", encode_base64(&self.digest.salt)),
            ("digest.digest", encode_base64(&self.digest.digest)),
            ("token.set", token.set.clone()),
            ("token.kid", token.wrapped.kid.to_string()),
            ("token.alg", token.wrapped.alg.name().to_owned()),
            ("token.wrapped-dek", encode_base64(&token.wrapped.bytes)),
        ];
        let mut message = String::from("wrapdisk luks2 header v1\n");
        for (name, value) in lines {
            message.push_str(name);
            message.push('=');
            message.push_str(&value);
            message.push('\n');
        }
        message
    }
}

/// HKDF-SHA256 (RFC 5869) of the volume key, no salt.
pub(super) fn derive<const N: usize>(key: &VolumeKey, info: &[u8]) -> Result<Secret<N>> {
    Secret::try_from_fn(|out| {
        expand(key, info, out);
        Ok(())
    })
}

/// As [`derive`], for what is no secret.
pub(super) fn expand(key: &VolumeKey, info: &[u8], out: &mut [u8]) {
    scrubbed(|| {
        let hkdf = Hkdf::<Sha256>::new(None, key.secret().expose());
        hkdf.expand(info, out).expect("32 bytes or fewer are within HKDF's limit");
    });
}
