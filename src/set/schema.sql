-- sets.db, schema 1. Uuids are canonical lower-case text, times are unix seconds.

CREATE TABLE disk_set (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE COLLATE NOCASE,
    vault    TEXT NOT NULL,                              -- id of the vault that holds the key
    key      TEXT NOT NULL,                              -- kid without version
    active   TEXT NOT NULL,                              -- kid with version: what new disks are wrapped with
    pinned   INTEGER NOT NULL CHECK (pinned IN (0, 1)),  -- 0 = follow the latest version
    identity TEXT NOT NULL,                              -- object id in that vault
    created  INTEGER NOT NULL
) STRICT;

-- The set of a container may be unknown here (it came from another machine): no foreign key.
CREATE TABLE container (
    uuid        TEXT NOT NULL,
    path        BLOB NOT NULL,                           -- absolute; any bytes but NUL
    kind        TEXT NOT NULL CHECK (kind IN ('disk', 'snapshot', 'image')),
    set_id      TEXT,
    kids        TEXT NOT NULL CHECK (json_valid(kids)),  -- JSON array, in the order of the header's tokens
    last_seen   INTEGER NOT NULL,
    last_rewrap INTEGER,
    PRIMARY KEY (uuid, path)
) STRICT;

CREATE INDEX container_of_set ON container (set_id);

-- Per uuid, not per path: every copy of a container has the same key, wherever it lies.
CREATE TABLE fingerprint (
    uuid TEXT PRIMARY KEY,
    fp   BLOB NOT NULL CHECK (length(fp) = 16)
) STRICT;
