//! The Ozone Manager: volumes, buckets, keys, multipart uploads, blocks. A replicated state machine on redb.
