//! The suite of the JavaScript SDK, in js.mjs.

use std::path::Path;
use std::sync::OnceLock;

use crate::steps::Step;

/// Every step of both passes.
pub(crate) fn steps() -> &'static [Step] {
    static STEPS: OnceLock<Vec<Step>> = OnceLock::new();
    STEPS.get_or_init(|| {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        crate::vault::judge("js", |plan, command| {
            command.arg("node").arg(top.join("tests/sdk/js.mjs")).arg(top.join("target/node")).arg(plan);
        })
    })
}

#[test]
fn the_official_javascript_sdk_works() {
    crate::steps::all_passed(steps());
}
