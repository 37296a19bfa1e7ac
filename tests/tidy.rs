//! Does the source keep the house rules: directions between modules, file size, headers, `unsafe` where it is allowed,
//! ASCII, nothing unfinished? Every rule has a test that plants a violation, so that a rule cannot stop looking.
//!
//! Uses `std` only and reads text, so it runs in a second and needs no compiler internals. What it reads is the code
//! without comments, doc links and string contents.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// ARCHITECTURE: a module uses only lower floors.
const FLOORS: [&[&str]; 6] = [
    &["units", "secret", "error", "sync", "envelope", "dirs", "journal", "revocation"],
    &["xts", "store", "luks2", "vault", "range_lock"],
    &["cache", "volume", "keyring"],
    &["disk", "set", "guard"],
    &["fuse", "control"],
    &["cli", "main"],
];

/// The edges on one floor; every module on the ground floor may make an error.
const SAME_FLOOR: [(&str, &str); 5] =
    [("*", "error"), ("luks2", "store"), ("luks2", "xts"), ("guard", "disk"), ("main", "cli")];

/// Edges that a floor would allow and that are refused all the same.
const NEVER: [(&str, &[&str], &str); 2] = [
    ("fuse", &["vault", "luks2", "keyring", "secret"], "the adapter sees neither keys nor vaults"),
    ("vault", &["store", "disk", "fuse"], "a vault knows data keys, not disks"),
];

/// Words that files under a path must not hold, and why.
const FORBIDDEN: [(&str, &[&str], &str); 3] = [
    ("src/xts/", &["std::fs", "std::net", "std::time", "Instant", "SystemTime"], "no I/O and no clock"),
    ("src/cache/", &["std::fs", "std::net", "std::time", "Instant", "SystemTime"], "no I/O and no clock"),
    (
        "",
        &["todo!", "unimplemented!", "#[ignore"],
        "finish it, or say what is missing where users can read it",
    ),
];

/// The only files that may hold `unsafe`, and what for.
const UNSAFE: [(&str, &str); 9] = [
    ("src/secret.rs", "the allocator that wipes"),
    ("src/secret/pages.rs", "the mapping of secret pages"),
    ("src/secret/registers.rs", "instructions that clear vector registers"),
    ("src/xts/awslc.rs", "the C interface of aws-lc"),
    ("src/xts/vaes.rs", "AES instructions of the CPU, loads and stores of its registers"),
    ("src/store/file.rs", "system calls that nix lacks"),
    ("src/store/device.rs", "ioctls of block devices"),
    ("src/fuse/attach.rs", "the descriptor that fusermount3 sends, and a prctl that nix lacks"),
    ("benches/xts.rs", "raw EVP calls, the baseline of the engines"),
];

/// Async lives only here.
const ASYNC: [&str; 2] = ["src/vault/azure/", "src/vault/server/"];

const MAX_LINES: usize = 500;

/// A file as the rules see it.
struct Source {
    /// From the top of the repository, with `/`.
    path: String,
    text: String,
    /// `text` with comments and the contents of literals blanked, so that positions agree.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    fn line_of(&self, position: usize) -> usize {
        1 + self.code[..position].matches('\n').count()
    }

    /// Where `word` stands alone in the code.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let name = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let bytes = self.code.as_bytes();
        let ends_in_name = name(word.as_bytes().last());
        self.code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
            let inside = at > 0 && name(bytes.get(at - 1));
            let goes_on = ends_in_name && name(bytes.get(at + word.len()));
            !inside && !goes_on
        })
    }

    /// `src/luks2/token.rs` is at `luks2::token`: the folders and the file, without `mod`.
    fn module(&self) -> Option<Vec<&str>> {
        let inner = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        Some(inner.strip_suffix("/mod").unwrap_or(inner).split('/').collect())
    }
}

// --- the rules: each gives one line a violation --------------------------------------------------------------------

fn directions(file: &Source) -> Vec<String> {
    let Some(from) = file.module().filter(|m| m != &["lib"]).map(|m| m[0]) else { return Vec::new() };
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (position, to) in uses(file) {
        if to == from || !seen.insert(to.clone()) {
            continue; // its own inside; or said already
        }
        if let Some(why) = refusal(from, &to) {
            wrong.push(format!("{}:{}: {from} uses {to}: {why}", file.path, file.line_of(position)));
        }
    }
    if floor(from).is_none() {
        wrong.push(format!("{}:1: {from} is on no floor: give it one in tests/tidy.rs", file.path));
    }
    wrong
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

fn refusal(from: &str, to: &str) -> Option<String> {
    if let Some((_, _, why)) = NEVER.iter().find(|(f, never, _)| *f == from && never.contains(&to)) {
        return Some((*why).to_owned());
    }
    let (above, below) = (floor(from)?, floor(to));
    let Some(below) = below else {
        return Some("it is no module of the house (name the module, not a re-export)".to_owned());
    };
    if above == below {
        let allowed = SAME_FLOOR.iter().any(|(f, t)| *t == to && (*f == from || *f == "*"));
        return (!allowed).then(|| format!("both are on floor {above}"));
    }
    (above < below).then(|| format!("floor {above} must not see floor {below}"))
}

/// The top-level modules that a file names, by `crate::`, by the library's name, or by climbing with `super::`.
fn uses(file: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for root in ["crate::", "wrapdisk::"] {
        for position in file.words(root) {
            let names = first_names(&file.code[position + root.len()..]);
            found.extend(names.into_iter().map(|name| (position, name)));
        }
    }
    // A `mod tests { use super::* }` looks like climbing from a top-level file, so only names of the house count.
    let depth = file.module().map_or(0, |m| m.len());
    for position in file.words("super::").filter(|&p| !file.code[..p].ends_with("super::")) {
        let mut rest = &file.code[position..];
        let mut climbed = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            (rest, climbed) = (next, climbed + 1);
        }
        if climbed >= depth {
            let names = first_names(rest).into_iter().filter(|name| floor(name).is_some());
            found.extend(names.map(|name| (position, name)));
        }
    }
    found
}

/// `a::b` -> a; `{a, b::{c, d}, e as f}` -> a, b, e.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '*')).collect()
    };
    let Some(group) = path.trim_start().strip_prefix('{') else { return vec![name(path.trim_start())] };
    let (mut names, mut depth, mut item) = (Vec::new(), 0_u32, 0);
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => {
                names.push(name(group[item..at].trim_start()));
                break;
            }
            ',' if depth == 0 => {
                names.push(name(group[item..at].trim_start()));
                item = at + 1;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty()); // after a trailing comma
    names
}

fn size(file: &Source) -> Vec<String> {
    let lines = file.text.lines().count();
    if lines <= MAX_LINES {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines, allowed {MAX_LINES}: split it", file.path)]
}

fn header(file: &Source) -> Vec<String> {
    if !file.path.starts_with("src/") || file.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("{}:1: no `//!` header that says what it is for", file.path)]
}

fn unsafe_code(file: &Source) -> Vec<String> {
    if UNSAFE.iter().any(|(path, _)| *path == file.path) {
        return Vec::new();
    }
    let places = file.words("unsafe").map(|p| file.line_of(p));
    places.map(|line| format!("{}:{line}: unsafe is not allowed in this file", file.path)).collect()
}

fn async_code(file: &Source) -> Vec<String> {
    if !file.path.starts_with("src/") || ASYNC.iter().any(|folder| file.path.starts_with(folder)) {
        return Vec::new();
    }
    let words = ["async", "await"].into_iter().flat_map(|word| file.words(word));
    words.map(|p| format!("{}:{}: async is allowed only in {ASYNC:?}", file.path, file.line_of(p))).collect()
}

fn forbidden(file: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (_, words, why) in FORBIDDEN.iter().filter(|(path, ..)| file.path.starts_with(path)) {
        for word in *words {
            let places = file.words(word).map(|p| file.line_of(p));
            wrong.extend(places.map(|line| format!("{}:{line}: {word}: {why}", file.path)));
        }
    }
    wrong
}

fn ascii(file: &Source) -> Vec<String> {
    let odd = |(_, line): &(usize, &str)| !line.is_ascii();
    let places = file.text.lines().enumerate().filter(odd);
    places.map(|(n, _)| format!("{}:{}: a character outside ASCII", file.path, n + 1)).collect()
}

// --- reading -------------------------------------------------------------------------------------------------------

/// Blanks comments and the contents of string and character literals; keeps every newline and every position.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = vec![b' '; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let opaque = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if rest[0] == b'"' {
            string(rest)
        } else if rest[0] == b'r'
            && !(at > 0 && (bytes[at - 1].is_ascii_alphanumeric() && bytes[at - 1] != b'b'))
        {
            raw_string(rest)
        } else if rest[0] == b'\'' {
            character(rest)
        } else {
            0
        };
        out[at] = if opaque == 0 { bytes[at] } else { b' ' };
        for skipped in at..at + opaque {
            out[skipped] = if bytes[skipped] == b'\n' { b'\n' } else { b' ' };
        }
        at += opaque.max(1);
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `r"..."`, `r#"..."#`; 0 when the `r` is just a letter.
fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = 2 + hashes;
    let close = rest[body..].windows(end.len()).position(|w| w == end);
    close.map_or(rest.len(), |at| body + at + end.len())
}

/// `'x'`, `'\n'`, `'\u{e9}'`; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', _, tail @ ..] => tail.iter().position(|b| *b == b'\'').map_or(0, |at| at + 4),
        _ => {
            let letter = std::str::from_utf8(&rest[1..rest.len().min(5)]);
            let valid = letter.map_or_else(|e| e.valid_up_to(), str::len);
            let text = std::str::from_utf8(&rest[1..1 + valid]).unwrap_or_default();
            let width = text.chars().next().map_or(0, char::len_utf8);
            if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
        }
    }
}

/// Every Rust file that is ours.
fn sources() -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        collect(&top.join(folder), &mut files);
    }
    files.sort();
    let read = |file: PathBuf| {
        let name = file.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
        Source::new(&name, &std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

#[track_caller]
fn holds(rule: fn(&Source) -> Vec<String>) {
    let files = sources();
    assert!(files.len() > 10 && files.iter().any(|f| f.path == "src/lib.rs"), "found no source to judge");
    let wrong: Vec<_> = files.iter().flat_map(rule).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

// --- the rules hold -------------------------------------------------------------------------------------------------

#[test]
fn modules_use_only_lower_floors() {
    holds(directions);
}

#[test]
fn files_are_short() {
    holds(size);
}

#[test]
fn every_module_has_a_header() {
    holds(header);
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    holds(unsafe_code);
}

#[test]
fn async_stays_where_it_is_allowed() {
    holds(async_code);
}

#[test]
fn nothing_is_unfinished_and_pure_modules_are_pure() {
    holds(forbidden);
}

#[test]
fn source_is_ascii() {
    holds(ascii);
}

// --- and each finds what it looks for -------------------------------------------------------------------------------

fn found(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
    rule(&Source::new(path, text))
}

#[test]
fn a_planted_direction_is_found() {
    let upward =
        found(directions, "src/xts/mod.rs", "//! x\nuse crate::error::Result;\nuse crate::disk::Gate;\n");
    assert_eq!(upward, ["src/xts/mod.rs:3: xts uses disk: floor 1 must not see floor 3"]);
    for (path, text, wrong) in [
        ("src/store/file.rs", "use crate::luks2::X;", true),
        ("src/luks2/token.rs", "use crate::{store::X, xts::{self, Y}};", false),
        ("src/fuse/mod.rs", "fn f() { crate::secret::random() }", true),
        ("src/fuse/mod.rs", "use crate::{\n    disk::PlainDisk,\n    vault::{Call, Kid},\n};", true),
        ("src/fuse/mod.rs", "use crate::{\n    disk::{self, PlainDisk},\n    error,\n};", false),
        ("src/vault/local/store.rs", "use crate::store::BackingStore;", true),
        ("src/vault/local/rsa.rs", "use super::store::Db;", false),
        ("src/vault/local/rsa.rs", "use super::super::super::store::Db;", true),
        ("src/vault/mod.rs", "use super::disk::X;", true),
        ("src/vault/mod.rs", "mod tests { use super::*; }", false),
        ("src/guard/mod.rs", "use crate::disk::Gate;", false),
        ("src/disk/mod.rs", "use crate::guard::Guard;", true),
        ("src/set/mod.rs", "use crate::disk::PlainDisk;", true),
        ("src/control/mod.rs", "use crate::set::SetStore;", false),
        ("src/units.rs", "use crate::error::Error;", false),
        ("src/error.rs", "use crate::units::Sector;", true),
        ("src/dirs.rs", "macro_rules! m { () => { $crate::cli::run() } }", true),
        ("src/main.rs", "fn main() { wrapdisk::cli::run() }", false),
        ("src/store/mod.rs", "fn f() { wrapdisk::cli::run() }", true),
        ("src/cli/mod.rs", "use crate::Error;", true),
        ("src/attic.rs", "", true),
        ("src/lib.rs", "pub use crate::cli::run;", false),
        (
            "src/units.rs",
            "/// See [`x`](crate::cli::run). \n// crate::cli\nconst A: &str = \"crate::cli::x\";",
            false,
        ),
        ("src/units.rs", "/* crate::cli */ const A: &str = r#\"\"crate::cli::x\"#; use crate::cli;", true),
    ] {
        assert_eq!(!found(directions, path, text).is_empty(), wrong, "{path}: {text}");
    }
}

#[test]
fn every_pair_on_the_floors_is_decided_as_the_house_says() {
    for (n, from) in FLOORS.iter().enumerate().flat_map(|(n, modules)| modules.iter().map(move |m| (n, *m))) {
        for (m, to) in FLOORS.iter().enumerate().flat_map(|(n, modules)| modules.iter().map(move |m| (n, *m)))
        {
            let never = NEVER.iter().any(|(f, t, _)| *f == from && t.contains(&to));
            let edge = SAME_FLOOR.iter().any(|(f, t)| (*f == from || *f == "*") && *t == to);
            let allowed = !never && (m < n || (m == n && edge));
            assert_eq!(refusal(from, to).is_none(), allowed, "{from} -> {to}");
        }
    }
}

#[test]
fn a_planted_long_file_is_found() {
    let lines = |n| "//! x\n".repeat(n);
    assert_eq!(found(size, "tests/a.rs", &lines(500)), Vec::<String>::new());
    assert_eq!(found(size, "tests/a.rs", &lines(501)), ["tests/a.rs: 501 lines, allowed 500: split it"]);
}

#[test]
fn a_planted_missing_header_is_found() {
    assert_eq!(found(header, "src/a.rs", "//! What it is for.\n"), Vec::<String>::new());
    for text in ["", "// not a doc", "use x;\n//! late", "//!\n"] {
        assert_eq!(found(header, "src/a.rs", text).len(), 1, "{text:?}");
    }
}

#[test]
fn a_planted_unsafe_is_found() {
    let text = "// unsafe\n#![deny(unsafe_code)]\nfn f<'a>() { unsafe { g('\\'', '\"') } }\nconst A: &str = \"unsafe\";";
    assert_eq!(found(unsafe_code, "src/a.rs", text), ["src/a.rs:3: unsafe is not allowed in this file"]);
    assert_eq!(found(unsafe_code, "src/secret.rs", text), Vec::<String>::new());
}

#[test]
fn a_planted_async_is_found() {
    assert_eq!(found(async_code, "src/disk/mod.rs", "fn async_io() {}\nasync fn f() { g().await }").len(), 2);
    assert_eq!(found(async_code, "src/vault/azure/mod.rs", "async fn f() {}"), Vec::<String>::new());
}

#[test]
fn a_planted_unfinished_piece_is_found() {
    assert_eq!(found(forbidden, "tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() { todo!() }").len(), 2);
    assert_eq!(found(forbidden, "src/a.rs", "fn f() { unimplemented!(\"later\") }").len(), 1);
    assert_eq!(found(forbidden, "src/a.rs", "// todo!\nfn my_todo() { \"todo!\" }"), Vec::<String>::new());
    assert_eq!(found(forbidden, "src/cache/mod.rs", "use std::time::Instant;").len(), 2);
    assert_eq!(found(forbidden, "src/disk/mod.rs", "use std::time::Instant;"), Vec::<String>::new());
}

#[test]
fn a_planted_letter_is_found() {
    assert_eq!(found(ascii, "src/a.rs", "//! a\n//! n\u{e4}h\n"), ["src/a.rs:2: a character outside ASCII"]);
}
