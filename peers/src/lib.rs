//! Raft peers over HTTP: carries batches of messages and snapshots between replicas of a group.
//!
//! Not here: what they say (see `consensus`), how a connection is authenticated (see `client::http`).
