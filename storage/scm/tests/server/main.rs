//! SCM behind its service trait: real log and state in a fresh directory, datanodes played by the test.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod leases;
mod operators;
mod replicas;
mod rig;
