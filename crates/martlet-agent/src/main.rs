//! martlet-agent.
fn main() {}
