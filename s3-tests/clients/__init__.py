"""One file a client: create, upload, list, download, copy, delete, and what that client alone does."""
