"""What the tests stand on: a server process, raw HTTP, signatures, checksums, waiting for conditions."""
