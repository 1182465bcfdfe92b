"""`Expect: 100-continue`: the server decides before it asks for the body, and the connection stays in step."""

import pytest

from harness.clients import body_of, refusal
from harness.raw import Connection, head_bytes

BODY = b"x" * 100_000


def expecting(raw, target, more=(), **rest):
    headers = raw.signed("PUT", target, more, BODY, **rest)
    return head_bytes("PUT", target, [*headers, ("Expect", "100-continue")])


def test_the_body_is_asked_for(raw, server, s3, bucket):
    with Connection(server.address) as connection:
        for key in ("a", "b"):
            connection.send(expecting(raw, f"/{bucket}/{key}"))
            assert connection.read_head() == (100, {})
            connection.send(BODY)
            assert connection.read_response().status == 200
    assert body_of(s3, bucket, "a") == body_of(s3, bucket, "b") == BODY


def wrong_signer():
    from harness.sigv4 import Signer

    return Signer(secret_key="wrong")


@pytest.mark.parametrize(
    ("name", "status"),
    [("signature", 403), ("bucket", 404), ("precondition", 412), ("digest", 400), ("too large", 400), ("unbuilt", 501)],
)
def test_a_refusal_needs_no_body(raw, server, s3, bucket, name, status):
    s3.put_object(Bucket=bucket, Key="k", Body=b"old")
    match name:
        case "signature":
            head = expecting(raw, f"/{bucket}/k", signer=wrong_signer())
        case "bucket":
            head = expecting(raw, "/no-such-bucket-x/k")
        case "precondition":
            head = expecting(raw, f"/{bucket}/k", [("If-None-Match", "*")])
        case "digest":
            head = expecting(raw, f"/{bucket}/k", [("Content-MD5", "nonsense")])
        case "too large":
            headers = raw.signed("PUT", f"/{bucket}/k", [], BODY, length=False)
            more = [("Content-Length", str((5 << 30) + 1)), ("Expect", "100-continue")]
            head = head_bytes("PUT", f"/{bucket}/k", [*headers, *more])
        case "unbuilt":
            head = expecting(raw, f"/{bucket}/k", [("x-amz-server-side-encryption", "AES256")])
    with Connection(server.address) as connection:
        connection.send(head)
        first, _ = connection.read_head()
        assert first == status, "100 must not come before a refusal"
    assert body_of(s3, bucket, "k") == b"old"


def test_after_a_refusal_the_connection_works_or_closes(raw, server, s3, bucket):
    with Connection(server.address) as connection:
        connection.send(expecting(raw, "/no-such-bucket-x/k"))
        answer = connection.read_response()
        assert (answer.status, answer.code) == (404, "NoSuchBucket")
        if answer.header("connection") == "close":
            assert connection.is_closed_by_server()
            return
        connection.send(head_bytes("GET", f"/{bucket}", raw.signed("GET", f"/{bucket}")))
        again = connection.read_response()
        assert again is None or again.status == 200


def test_an_empty_body_is_asked_for_or_the_connection_ends(raw, server, s3, bucket):
    """botocore reads the next answer wrongly after a final one that no 100 preceded, so there must be no next one."""
    headers = raw.signed("PUT", f"/{bucket}/empty", [], b"")
    with Connection(server.address) as connection:
        connection.send(head_bytes("PUT", f"/{bucket}/empty", [*headers, ("Expect", "100-continue")]))
        status, fields = connection.read_head()
        assert status == 100 or (status, fields.get("connection")) == (200, "close")
    s3.head_object(Bucket=bucket, Key="empty")


def test_a_client_that_does_not_wait_is_served(raw, server, s3, bucket):
    with Connection(server.address) as connection:
        connection.send(expecting(raw, f"/{bucket}/k") + BODY)
        assert connection.read_response().status == 200
    assert body_of(s3, bucket, "k") == BODY


def test_an_unknown_expectation_is_refused_or_ignored(raw, server, s3, bucket):
    headers = raw.signed("PUT", f"/{bucket}/k", [], b"x")
    answer = raw.send("PUT", f"/{bucket}/k", [*headers, ("Expect", "200-ok")], b"x")
    assert answer.status in (200, 417)
    if answer.status == 417:
        assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404
