//! Stores blocks inside containers on disks.
