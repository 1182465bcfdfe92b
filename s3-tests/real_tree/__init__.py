"""A real directory tree through the aws command, with a kill in the middle."""
