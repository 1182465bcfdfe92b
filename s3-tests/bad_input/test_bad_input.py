"""Sends each row of the table: the answer is one of those allowed, nothing is stored, the server goes on."""

import pytest

from bad_input.table import CLOSED, ROWS, Target
from harness.clients import keys_of
from harness.raw import Connection, head_bytes
from harness.waiting import wait_until


def answer_to(address, data, half_close):
    with Connection(address) as connection:
        try:
            connection.send(data)
            if half_close:
                connection.half_close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # It may answer and close before it has read everything.
        except OSError:
            return None
        try:
            return connection.read_response("HEAD" if data.startswith(b"HEAD") else "GET")
        except ConnectionError:
            return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input(server, raw, s3, bucket, row):
    before = {entry["Name"] for entry in s3.list_buckets()["Buckets"]}
    answer = answer_to(server.address, row.send(Target(raw, bucket)), row.half_close)
    seen = CLOSED if answer is None else (answer.status, answer.code)
    assert seen in row.allowed, answer
    if answer is not None and answer.code is not None:
        assert answer.message, "an error says what is wrong"
        assert str(server.data) not in answer.message and "panicked" not in answer.message
    if seen[0] != 200:
        assert keys_of(s3, bucket) == []
    assert {entry["Name"] for entry in s3.list_buckets()["Buckets"]} == before
    assert server.is_alive()


def test_half_a_head_is_not_waited_for_forever(server, s3):
    """Slow-loris: clients that trickle a head are cut off, and others are served meanwhile."""
    slow = [Connection(server.address) for _ in range(50)]
    try:
        for connection in slow:
            connection.send(b"GET / HTTP/1.1\r\nHost: x\r\nx-slow: ")
        assert s3.list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
        for connection in slow:
            assert connection.is_closed_by_server() or connection.buffer.startswith(b"HTTP/1.1 4")
    finally:
        for connection in slow:
            connection.socket.close()


def test_a_trickled_body_leaves_nothing(server, raw, s3, bucket):
    headers = raw.signed("PUT", f"/{bucket}/slow", [], b"x" * 1000)
    with Connection(server.address) as connection:
        connection.send(head_bytes("PUT", f"/{bucket}/slow", headers) + b"x" * 10)
        assert keys_of(s3, bucket) == []
    wait_until("the server to serve on", lambda: keys_of(s3, bucket) == [])


def test_many_idle_connections_do_not_keep_others_out(server, s3):
    idle = [Connection(server.address) for _ in range(300)]
    try:
        assert s3.list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    finally:
        for connection in idle:
            connection.socket.close()
