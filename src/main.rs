//! The binary `node`.
fn main() {}
