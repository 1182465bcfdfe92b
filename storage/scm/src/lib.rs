//! The Storage Container Manager: containers, datanodes, leases, deletion transactions.
