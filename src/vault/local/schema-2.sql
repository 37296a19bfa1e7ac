-- Schema 2: the life of a key after it was made (KEY-VAULT section 2: lifecycle, rotation policy).

ALTER TABLE vault ADD COLUMN retention_days INTEGER NOT NULL DEFAULT 90 CHECK (retention_days BETWEEN 7 AND 90);
ALTER TABLE vault ADD COLUMN purge_protection INTEGER NOT NULL DEFAULT 0 CHECK (purge_protection IN (0, 1));
CREATE TRIGGER purge_protection_stays BEFORE UPDATE OF purge_protection ON vault
    WHEN old.purge_protection = 1 AND new.purge_protection = 0
    BEGIN SELECT RAISE (ABORT, 'purge protection is never taken back'); END;

-- A deleted key keeps its name until it is purged.
ALTER TABLE key ADD COLUMN deleted_at INTEGER;
ALTER TABLE key ADD COLUMN scheduled_purge INTEGER;
-- 32 bytes under the root key; what seals this key's private parts. NULL only between this migration and the first open.
ALTER TABLE key ADD COLUMN wrapping BLOB;
-- JSON of the rotation policy; NULL: the default one.
ALTER TABLE key ADD COLUMN policy TEXT;
ALTER TABLE key ADD COLUMN policy_created INTEGER;
ALTER TABLE key ADD COLUMN policy_updated INTEGER;

-- Notify was carried out for this version.
ALTER TABLE key_version ADD COLUMN notified INTEGER NOT NULL DEFAULT 0 CHECK (notified IN (0, 1));
