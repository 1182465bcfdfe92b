//! Operators' port: health and metrics.
