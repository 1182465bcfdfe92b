//! S3 over HTTP. Knows S3 words; owns no data.
