//! What the daemons ask of the machine: disks, tasks, threads; and the same without a machine, for the simulator.
//!
//! Daemons spawn tasks, run blocking work, own threads and open files through this crate alone. So one program runs in
//! two ways: in production over the operating system, and in the simulator, where every node lives in one thread on a
//! clock that jumps, on disks in memory, and can be killed between any two steps.
//!
//! | file | what |
//! | --- | --- |
//! | `disk` | files and directories as traits; the operating system's |
//! | `simulated` | a disk in memory that forgets what was not synced |
//! | `task` | tasks and blocking work |
//! | `actor` | a loop that owns its state and takes inputs from a queue: a thread, or a task when simulated |
//! | `watch` | one value that many wait for, in the order in which they came |
//! | `abort` | the end of the process, or of a simulated node |
//! | `node` | which simulated node is running, and its end |
//!
//! Time and randomness are `wire::clock` and `wire::random`, which the simulator replaces likewise.
//!
//! Not here: what is in the files, the network (see `client`).

pub mod abort;
pub mod actor;
pub mod disk;
pub mod node;
pub mod simulated;
pub mod task;
pub mod watch;
