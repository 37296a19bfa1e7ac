//! The `wrapdisk` command; also answers to `mount.wrapdisk` and `mount.fuse.wrapdisk`.

fn main() -> std::process::ExitCode {
    wrapdisk::cli::main()
}
