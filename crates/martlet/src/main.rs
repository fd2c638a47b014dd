//! martlet.
fn main() {}
