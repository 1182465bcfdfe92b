//! A small S3 client for bench and the command line.
