//! Build tooling: `cargo xtask test | ci | tidy | s3-tests`.

fn main() {}
