//! # wrapdisk: the architecture
//!
//! A disk image that is plaintext only inside a mount, whose data key is wrapped by a key that you keep in a vault and can
//! take away at any time.
//!
//! ## Bird's eye
//!
//! The backing file is a standard LUKS2 container ([`luks2`]): header, keyslots, and one segment of AES-256-XTS sectors. Its
//! 64-byte data key (DEK) lies in the header only as a *token*: wrapped by one version of an RSA key (KEK) in a key vault
//! ([`vault`]). A disk encryption set ([`set`]) says which key wraps, and in whose name the vault is asked. A mount
//! ([`fuse`]) presents the plaintext ([`disk`]) as one file.
//!
//! ## Floors
//!
//! A module uses lower floors only; `tests/tidy.rs` holds this. On one floor: luks2 -> store, xts.
//!
//! | Floor | Modules |
//! |---|---|
//! | L5 | [`cli`]: one file a subcommand |
//! | L4 | [`fuse`]: adapter, session, mountpoint; [`control`]: a live mount, and the socket to it |
//! | L3 | [`disk`]: bytes over cache and volume, the fence; [`set`]: sets, registry, first use; [`guard`]: when the fence falls, and what happens around a mount then |
//! | L2 | [`cache`]: plaintext blocks; [`volume`]: one encrypted segment, behind the key gate; [`keyring`]: token -> key |
//! | L1 | [`xts`]; [`store`]; [`luks2`]; [`vault`]; [`range_lock`] |
//! | L0 | [`units`], [`secret`], [`error`], [`sync`], [`envelope`], [`dirs`], [`journal`], [`revocation`]: what a mount does when its key is gone |
//!
//! `fuse` never sees a key, a vault or a header: it serves any [`disk::Image`], which is how the bench's ceiling
//! (`examples/nullfuse.rs`) runs the product's own session. `vault` never sees a store or a disk. `xts`, `cache` and the LUKS2
//! codec read no clock and do no I/O of their own.
//!
//! ## How a read travels
//!
//! FUSE `read` -> clamp to the end -> [`disk::PlainDisk::read`]: grown to whole blocks -> a ticket at the
//! [key gate](volume::Gate) -> one block that is cached is copied out without a range lock, and the ticket is checked again.
//! Otherwise: shared range lock -> all blocks from the cache, or one store read straight into a reply buffer -> all-zero
//! sectors stay zeros, the others are decrypted in place, 128 KiB a crypto section -> inserted inside a crypto section ->
//! replied from that buffer, which is wiped then. So no plaintext waits for a store that hangs. Reads of 128 KiB and more go
//! past the cache. No allocation per request.
//!
//! ## How a write travels
//!
//! FUSE `write` -> past the end: `ENOSPC` -> gate -> exclusive range lock over whole blocks -> ticket -> partial sectors at
//! the ends are read, decrypted, changed -> encrypted into the thread's scratch, never in the caller's buffer -> store write
//! -> the ticket is checked again, cached blocks updated (dropped after a failure) -> reply. `fsync` is a store sync. An
//! acknowledged write is in the backing file's page cache; a returned fsync is durable. After EIO from a write or sync every
//! later fsync fails until the disk is unmounted ([`store::LatchedStore`]); a write that finds no space does not latch, a
//! sync does.
//!
//! ## How a key travels
//!
//! The key is in the embedded vault ([`vault::local`]), or in one elsewhere that is configured here: Azure Key Vault, a
//! Managed HSM, another machine's `vault serve` (`vault::azure`). A key identifier's host says which; the set says in whose
//! name. `create`: random DEK -> wrapped with the set's active key version, unwrapped again and compared -> token with a MAC.
//! `mount`: tokens in the set's order -> unwrap in the name of the set's identity -> digest, MAC, pinned fingerprint ->
//! cipher behind the gate; the DEK itself is wiped. Every use leaves a row in the vault's hash-chained audit. A closed gate
//! refuses new I/O at once; crypto that runs is waited for, then key, schedules and cache are wiped. What closes
//! it is the next section.
//!
//! ## How a key is taken away, and comes back
//!
//! A mount that a vault opened has a [`guard`]: every 0.5 to 0.7 of the probe interval (60 s) it unwraps the disk's key in the
//! name of the set and compares it through the header's own digest; the embedded vault's policy generation is looked at every
//! second, and commands that change keys or grants poke the control sockets. A confirmed denial, or a grace that ran out,
//! closes the gate; [`revocation::Policy`] says what I/O meets then: an error, or (`freeze`) it waits, the request set aside
//! in [`disk`] and no thread with it. The gate's ticket is on lease ([`volume::Gate::lend`]): a guard that is stuck or dead
//! cannot keep a key. When the vault gives the key again, digest, MAC and fingerprint are checked as at a mount, and the same
//! mount serves on. A mount that a passphrase opened has no guard, and says so.
//!
//! Around the fence ([`guard::Responses`]): guests whose monitors are registered ([`guard::guests`]) are stopped before it, or
//! shut down inside the policy's window, the only thing it waits for; ended after it, or continued when the key is back. The
//! journal has each event under a message id that stays ([`guard::catalog`]); hooks and notifications come last.
//!
//! ## How a rotation travels
//!
//! A new version of the key -> [`set::rotation`]: whoever looks first (a mount, the timer's `set rotate --all`) makes it the
//! set's active one by compare-and-swap in `sets.db` and keeps the old one among the previous -> each container, mounted ones
//! by their own daemon ([`control`]): [`set::rewrap`] unwraps with the old version, wraps with the new one, unwraps and
//! compares, commits the header with both tokens, then with the new one -> whoever finds no container left ends it. The data
//! key and the data do not change, and no request waits. What fails or is missing keeps its error in the registry and is
//! tried again; nothing is wrapped without an unwrap of the old version in the same pass, so a rotation never outruns a
//! revocation.
//!
//! ## Invariants
//!
//! 1. A sector's plaintext in the cache equals what decrypting the store would give, under the range lock that covers it:
//!    [`cache::BlockCache`] takes the lock's guard as an argument.
//! 2. Two writes to parts of one sector never lose either part.
//! 3. Nothing is decrypted with a key that failed the digest, or whose container failed the MAC ([`luks2::Header::verify`]).
//! 4. The plaintext of a key exists behind the gate only, in memory that is locked where the limit allows and left out of
//!    dumps, and is gone when the gate closes; no vector register keeps any of it after a call.
//! 5. At every crash point of a header commit the container opens with the old or the new header.
//! 6. One writer per container: a lock on the backing file for as long as it is mounted.
//! 7. A length or offset from a file, a header or the kernel is checked before arithmetic: [`units`].
//!
//! ## What is deliberately absent
//!
//! No async in the data path: requests are served by a few blocking threads, which measure faster than any runtime here (it
//! stays within `vault::azure` and `vault::server`). No fork: a mount in the background is this program run again. No
//! authentication of contents: XTS has none, and nothing here claims it.

pub mod cache;
pub mod cli;
pub mod control;
pub mod dirs;
pub mod disk;
pub mod envelope;
pub mod error;
pub mod fuse;
pub mod guard;
pub mod journal;
pub mod keyring;
pub mod luks2;
pub mod range_lock;
pub mod revocation;
pub mod secret;
pub mod set;
pub mod store;
pub mod sync;
pub mod units;
pub mod vault;
pub mod volume;
pub mod xts;
