"""Bad input: the table and the tests that send it."""
