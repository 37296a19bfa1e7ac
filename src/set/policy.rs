//! What a set's mounts do when its key is taken away: the column `policy` of `sets.db`, JSON; NULL is the default.

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::SetStore;
use crate::error::{Error, ErrorKind, Result};
use crate::revocation::Policy;

impl SetStore {
    /// The policy of a set; the default of one that is not known.
    ///
    /// # Errors
    /// `Damaged` for one that does not parse; `Busy`, `Io`.
    pub fn policy(&self, set: Uuid) -> Result<Policy> {
        let text = self.with(|db| {
            db.prepare_cached("SELECT policy FROM disk_set WHERE id = ?")?
                .query_row([set.to_string()], |row| row.get::<_, Option<String>>(0))
                .optional()
        });
        let text = text.map_err(|e| self.failure("look up a policy in", &e))?.flatten();
        let parse = |text: String| {
            serde_json::from_str(&text)
                .map_err(|e| Error::new(ErrorKind::Damaged, "policy of a set").at(&self.path).caused_by(e))
        };
        text.map_or_else(|| Ok(Policy::default()), parse)
    }

    /// Changes it, for the mounts from now on.
    ///
    /// # Errors
    /// `NotFound`; `Busy`, `NoSpace`, `Io`.
    pub fn set_policy(&self, set: Uuid, policy: &Policy) -> Result<()> {
        let text =
            serde_json::to_string(policy).map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))?;
        let changed = self.with(|db| {
            db.execute("UPDATE disk_set SET policy = ? WHERE id = ?", params![text, set.to_string()])
        });
        match changed.map_err(|e| self.failure("change a policy in", &e))? {
            0 => Err(Error::new(ErrorKind::NotFound, "no such set").on(set.to_string())),
            _ => Ok(()),
        }
    }
}
