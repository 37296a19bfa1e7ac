//! The suite of the Python SDK, in python.py.

use std::path::Path;
use std::sync::OnceLock;

use crate::steps::Step;

/// Every step of both passes.
pub(crate) fn steps() -> &'static [Step] {
    static STEPS: OnceLock<Vec<Step>> = OnceLock::new();
    STEPS.get_or_init(|| {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        crate::vault::judge("python", |plan, command| {
            command
                .arg(top.join("target/venv/bin/python"))
                .arg("-B")
                .arg(top.join("tests/sdk/python.py"))
                .arg(plan);
        })
    })
}

#[test]
fn the_official_python_sdk_works() {
    crate::steps::all_passed(steps());
}
