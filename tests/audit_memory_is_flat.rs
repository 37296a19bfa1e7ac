//! Is a long audit verified and listed in little memory? Alone in its process, whose memory it measures.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

mod audit_support;

use audit_support::{Insider, vault};
use wrapdisk::vault::local::AuditFilter;

/// `VmHWM` of this process in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// With WRAPDISK_LONG, over the million records that the issue names.
#[test]
fn a_long_chain_is_verified_in_little_memory() {
    let count = if std::env::var_os("WRAPDISK_LONG").is_some() { 1_000_000 } else { 60_000 };
    let (dir, vault) = vault(2);
    let mut insider = Insider::new(dir.path(), &vault);
    let template = insider.rows().pop().unwrap();
    insider.forge((0..count).map(|i| template.replace("user-1", &format!("user-{i}"))));
    let size = std::fs::metadata(dir.path().join("vault.db")).unwrap().len() / 1024;
    let before = peak();
    let start = std::time::Instant::now();
    let head = vault.verify_audit().unwrap();
    let grown = peak() - before;
    assert_eq!(head.seq, count);
    println!("{count} records, {size} KiB: {:?}, {grown} KiB more", start.elapsed());
    assert!(grown < 16 << 10, "{grown} KiB for {size} KiB");
    let mut listed = 0;
    vault
        .audit_each(&AuditFilter::default(), |_| {
            listed += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, count);
    assert!(peak() - before < 24 << 10, "a listing streams as well");
}
