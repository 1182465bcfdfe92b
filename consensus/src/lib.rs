//! The raft-rs driver: segmented log, redb state, checkpoints, replay. Generic over a state machine.
