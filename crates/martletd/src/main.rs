//! martletd.
fn main() {}
