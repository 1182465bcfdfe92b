//! Who is asking, and is the request theirs: SigV4 and SigV2 verification, payload modes, chunk signatures.
