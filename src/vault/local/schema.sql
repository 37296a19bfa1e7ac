-- Schema 1 of the embedded vault (KEY-VAULT section 2). Later schemas are further files in db.rs' MIGRATIONS; this one
-- is never edited once released. Times are unix seconds, uuids lower-case text, flags 0 or 1.

CREATE TABLE vault (
    one               INTEGER PRIMARY KEY CHECK (one = 1),
    id                TEXT    NOT NULL,
    name              TEXT    NOT NULL,
    tenant_id         TEXT    NOT NULL,
    location          TEXT    NOT NULL,
    created           INTEGER NOT NULL,
    seal_method       TEXT    NOT NULL,            -- 'file': root.key beside this file
    seal_generation   INTEGER NOT NULL,            -- of the root key; every sealed blob names its own (RULINGS 31)
    seal_check        BLOB    NOT NULL,            -- nothing, sealed: tells whether root.key belongs to this file
    policy_generation INTEGER NOT NULL             -- bumped by key, grant and identity changes only (RULINGS 24)
) STRICT;

CREATE TABLE key (
    id      TEXT    PRIMARY KEY,
    name    TEXT    NOT NULL COLLATE NOCASE UNIQUE, -- printed as created, compared without case
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE key_version (
    key      TEXT    NOT NULL REFERENCES key (id) ON DELETE CASCADE,
    version  TEXT    NOT NULL UNIQUE,               -- 32 lower-case hex digits, random
    seq      INTEGER NOT NULL,                      -- the highest one is the latest, enabled or not
    kty      TEXT    NOT NULL,
    bits     INTEGER NOT NULL,
    n        BLOB    NOT NULL,
    e        BLOB    NOT NULL,
    private  BLOB    NOT NULL,                      -- PKCS#8, sealed
    enabled  INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    nbf      INTEGER,
    exp      INTEGER,
    created  INTEGER NOT NULL,
    updated  INTEGER NOT NULL,
    key_ops  TEXT    NOT NULL,                      -- JSON array of Azure's names
    tags     TEXT    NOT NULL,                      -- JSON object
    PRIMARY KEY (key, seq)
) STRICT;

CREATE TABLE identity (
    oid       TEXT    PRIMARY KEY,
    client_id TEXT    NOT NULL UNIQUE,
    name      TEXT    NOT NULL COLLATE NOCASE,
    kind      TEXT    NOT NULL CHECK (kind IN ('system', 'user', 'admin')),
    enabled   INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    created   INTEGER NOT NULL
) STRICT;
-- A user signs in by name; a set's identity is known by its oid, and a set of the same name may come again.
CREATE UNIQUE INDEX identity_user_name ON identity (name) WHERE kind <> 'system';

CREATE TABLE access_policy (
    identity TEXT    NOT NULL REFERENCES identity (oid) ON DELETE CASCADE,
    key      TEXT    REFERENCES key (id) ON DELETE CASCADE, -- NULL: the whole vault
    role     TEXT    NOT NULL,
    created  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX access_policy_once ON access_policy (identity, ifnull(key, ''), role);

CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY,                  -- 1, 2, 3, ...
    record    TEXT NOT NULL,                        -- the exact JSON bytes that are hashed
    prev_hash BLOB NOT NULL CHECK (length(prev_hash) = 32),
    hash      BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
-- Against accidents and honest tools. Against a writer of this file stands the chain.
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE (ABORT, 'audit records are never changed'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE (ABORT, 'audit records are never deleted'); END;

CREATE TABLE audit_head (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    seq        INTEGER NOT NULL,
    hash       BLOB    NOT NULL CHECK (length(hash) = 32),
    broken_seq INTEGER NOT NULL,                    -- 0, or where a writer first met a chain that was not ours
    mac        BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT;
