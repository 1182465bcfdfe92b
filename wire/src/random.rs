//! The one way to randomness, for shells: identities, keys, nonces.
//!
//! Cores never draw: random choices reach them as arguments, so that a replica or a simulated run repeats them.

/// Fills `bytes` from the operating system's generator.
///
/// # Panics
/// If the operating system has no randomness to give, in which case no secret of ours would be one.
#[expect(clippy::disallowed_methods, reason = "the one place that draws randomness")]
pub fn fill(bytes: &mut [u8]) {
    if crate::world::ask(|world| world.fill(bytes)).is_some() {
        return;
    }
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}

/// Random bytes as an array.
pub fn array<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// A random 64-bit number.
pub fn u64() -> u64 {
    u64::from_le_bytes(array())
}
