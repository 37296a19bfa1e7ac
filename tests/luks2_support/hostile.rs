//! Tables of refusals: one change to a good header, and the words it is refused with.

use serde_json::Value;
use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::luks2::Header;
use wrapdisk::store::{BackingStore, FaultPlan, FaultyStore, Op};

use super::small;

/// One change, and how it is refused.
#[derive(Debug)]
pub(crate) struct Row {
    pointer: &'static str,
    value: Option<Value>,
    message: String,
    kind: ErrorKind,
}

/// Nothing in place of a member.
pub(crate) const GONE: Option<Value> = None;

/// With `value` at the JSON pointer, the header is damaged: exit 5.
pub(crate) fn damaged(
    pointer: &'static str,
    value: impl Into<Option<Value>>,
    message: impl Into<String>,
) -> Row {
    Row { pointer, value: value.into(), message: message.into(), kind: ErrorKind::Damaged }
}

/// With `value` at the JSON pointer, the header is one that we do not open: exit 1.
pub(crate) fn unsupported(
    pointer: &'static str,
    value: impl Into<Option<Value>>,
    message: impl Into<String>,
) -> Row {
    Row { kind: ErrorKind::Unsupported, ..damaged(pointer, value, message) }
}

/// Sets, adds or removes the member at a JSON pointer.
pub(crate) fn edit(json: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = json.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}: no parent"));
    match (parent, value) {
        (Value::Array(items), Some(value)) => items[name.parse::<usize>().expect("an index")] = value,
        (parent, Some(value)) => parent[name] = value,
        (parent, None) => {
            let gone = parent.as_object_mut().and_then(|o| o.shift_remove(name));
            assert!(gone.is_some(), "{pointer}: nothing to remove");
        }
    }
}

/// The error of a store that must be refused, without a byte written.
#[track_caller]
pub(crate) fn refusal(store: impl BackingStore) -> Error {
    let plan = FaultPlan::default();
    let store = FaultyStore::new(store, plan.clone());
    let e = Header::load(&store).map(|_| ()).expect_err("it was accepted");
    assert_eq!((plan.count(Op::Write), plan.count(Op::Punch), plan.count(Op::SetLen)), (0, 0, 0), "{e}");
    e
}

/// Every row alone must be refused in its own words, and without any row `base` must be good.
#[track_caller]
pub(crate) fn refuses_each(base: &Value, rows: &[Row]) {
    Header::load(&small(&base.to_string())).expect("the base of the table is good");
    let mut wrong = Vec::new();
    for Row { pointer, value, message, kind } in rows {
        let mut json = base.clone();
        edit(&mut json, pointer, value.clone());
        let said = match Header::load(&small(&json.to_string())) {
            Ok(_) => "ACCEPTED".to_owned(),
            Err(_) => {
                let e = refusal(small(&json.to_string()));
                format!("{:?} {e}", e.kind())
            }
        };
        if said != format!("{kind:?} {message}") {
            let value = value.as_ref().map_or("nothing".to_owned(), Value::to_string);
            wrong.push(format!("{pointer} = {value:.80}\n     said: {said}\n expected: {kind:?} {message}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
