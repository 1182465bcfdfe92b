//! The one binary, `ferrozone`.

fn main() {}
