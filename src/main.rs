//! The binary `node`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    cairn::os::end_on_panic();
    cairn::os::exit(cairn::cli::main())
}
