//! Randomness of a run: one seed, and a stream of its own for everything that draws.
//!
//! Streams are apart so that a change of the workload does not shift the faults, and what one node draws does not change
//! what another does.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The stream of `purpose` in the run of `seed`.
pub(crate) fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(xxh3_64_with_seed(purpose.as_bytes(), seed))
}
