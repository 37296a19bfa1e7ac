-- Schema 3: who may sign in and with what, single permissions, what else is sealed, and where the audit begins.

-- Beside the roles of access_policy: one row a permission.
CREATE TABLE access_permission (
    identity   TEXT    NOT NULL REFERENCES identity (oid) ON DELETE CASCADE,
    key        TEXT    REFERENCES key (id) ON DELETE CASCADE, -- NULL: the whole vault
    permission TEXT    NOT NULL,                              -- Azure's name, as Permission::name has it
    created    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX access_permission_once ON access_permission (identity, ifnull(key, ''), permission);

CREATE TABLE credential (
    id       INTEGER PRIMARY KEY,
    identity TEXT    NOT NULL REFERENCES identity (oid) ON DELETE CASCADE,
    kind     TEXT    NOT NULL CHECK (kind IN ('client-secret', 'identity-header')),
    hash     BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32), -- HMAC-SHA256 under the sealed secret "credentials"
    created  INTEGER NOT NULL,
    expires  INTEGER                                            -- NULL: never
) STRICT;
CREATE INDEX credential_identity ON credential (identity);

-- No reference to identity: a token of a removed identity must read as "no permission" until it expires (RULINGS 23).
CREATE TABLE token (
    hash     BLOB    PRIMARY KEY CHECK (length(hash) = 32),     -- SHA-256 of its text
    identity TEXT    NOT NULL,
    audience TEXT    NOT NULL,
    issued   INTEGER NOT NULL,
    expires  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX token_expires ON token (expires);

-- What the vault itself keeps under the root key, by name.
CREATE TABLE sealed_secret (
    name    TEXT    PRIMARY KEY,
    sealed  BLOB    NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- After an archive the chain begins behind this record; MACed like the head. No row: it begins at record 1.
CREATE TABLE audit_start (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seq  INTEGER NOT NULL,
    hash BLOB    NOT NULL CHECK (length(hash) = 32),
    mac  BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT;
