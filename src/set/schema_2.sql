-- sets.db, schema 2: vaults elsewhere. A set's `vault` is the id of one of these, or of the embedded vault.

CREATE TABLE vault_entry (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE COLLATE NOCASE,
    endpoint     TEXT NOT NULL,                                          -- https://HOST[:PORT]
    aliases      TEXT NOT NULL CHECK (json_valid(aliases)),              -- JSON array of hosts
    credential   TEXT NOT NULL CHECK (json_valid(credential)),           -- never a secret: where it lies
    ca_file      BLOB,                                                   -- absolute; any bytes but NUL
    authority    TEXT,                                                   -- https://HOST[:PORT]
    local_server INTEGER NOT NULL CHECK (local_server IN (0, 1)),
    created      INTEGER NOT NULL
) STRICT;
