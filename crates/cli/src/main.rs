//! The binary `spindle`.
fn main() {}
