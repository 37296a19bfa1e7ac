//! The `wrapdisk` command; also answers to `mount.wrapdisk` and `mount.fuse.wrapdisk`.

/// Keys pass through crates that allocate; none of their copies may stay behind.
#[global_allocator]
static HEAP: wrapdisk::secret::WipingAllocator = wrapdisk::secret::WipingAllocator;

fn main() -> std::process::ExitCode {
    wrapdisk::cli::main()
}
