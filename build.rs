//! Builds the guest agent.
fn main() {}
