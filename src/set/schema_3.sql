-- sets.db, schema 3: rotation, and what a mount does when its key is taken away.

ALTER TABLE disk_set ADD COLUMN encryption_type TEXT NOT NULL DEFAULT 'EncryptionAtRestWithCustomerKey';
-- JSON array of {kid, vault, identity, since}: versions that containers may still need. Not empty = a rotation is on its way.
ALTER TABLE disk_set ADD COLUMN previous TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(previous));
ALTER TABLE disk_set ADD COLUMN rotation_due INTEGER;                 -- by when every container is to be done
ALTER TABLE disk_set ADD COLUMN last_rotation INTEGER;
-- JSON {since, time, kid, code, message, transient}
ALTER TABLE disk_set ADD COLUMN trouble TEXT CHECK (trouble IS NULL OR json_valid(trouble));
-- JSON, the guard's; NULL = the defaults
ALTER TABLE disk_set ADD COLUMN policy TEXT CHECK (policy IS NULL OR json_valid(policy));

-- Why this container could not be rewrapped when it was last tried; the same JSON as above.
ALTER TABLE container ADD COLUMN trouble TEXT CHECK (trouble IS NULL OR json_valid(trouble));
