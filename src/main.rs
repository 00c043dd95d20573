//! The binary `node`.

fn main() {
    cairn::os::exit(cairn::cli::main())
}
