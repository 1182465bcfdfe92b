"""How a body may be framed and signed: each mode stores the bytes, never the framing; each damage stores nothing."""

import pytest

from harness.checksums import ALGORITHMS, checksum, header
from harness.clients import body_of, pattern, refusal
from harness.raw import Connection, exchange, head_bytes
from harness.sigv4 import (
    STREAMING,
    STREAMING_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Signer,
    http_chunks,
    seed_of,
    sha256,
    unsigned_chunks,
)

pytestmark = pytest.mark.transports

BODY = pattern(200_000)
PIECES = [BODY[at : at + 65536] for at in range(0, len(BODY), 65536)]


class Streamed:
    """A chunked upload whose head and body can be changed before it is sent."""

    def __init__(self, raw, target, mode, data=BODY, trailer=None, chunked=False, more=()):
        self.raw, self.target, self.mode, self.chunked = raw, target, mode, chunked
        self.signer = Signer()
        headers = [("Host", raw.host), ("Content-Encoding", "aws-chunked"), *more]
        headers.append(("x-amz-decoded-content-length", str(len(data))))
        if trailer is not None:
            headers.append(("x-amz-trailer", trailer))
        self.headers = self.signer.headers("PUT", target, headers, mode)

    def send(self, body):
        if self.chunked:
            head = [*self.headers, ("Transfer-Encoding", "chunked")]
            body = http_chunks(body)
        else:
            head = [*self.headers, ("Content-Length", str(len(body)))]
        return exchange(self.raw.address, head_bytes("PUT", self.target, head) + body, "PUT")


@pytest.fixture
def nothing_stored(s3, bucket):
    yield
    assert refusal(s3.head_object, Bucket=bucket, Key="k")[0] == 404


@pytest.mark.parametrize("payload_hash", [sha256(BODY), UNSIGNED])
def test_plain_bodies(raw, s3, bucket, payload_hash):
    answer = raw.request("PUT", f"/{bucket}/k", [], BODY, payload_hash=payload_hash)
    assert answer.status == 200
    assert body_of(s3, bucket, "k") == BODY


def test_a_plain_body_may_come_chunked(raw, s3, bucket):
    headers = raw.signed("PUT", f"/{bucket}/k", [], payload_hash=UNSIGNED, length=False)
    answer = raw.send("PUT", f"/{bucket}/k", [*headers, ("Transfer-Encoding", "chunked")], http_chunks(BODY))
    assert answer.status == 200
    assert body_of(s3, bucket, "k") == BODY


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "transfer-encoding"])
def test_signed_chunks(raw, s3, bucket, chunked):
    upload = Streamed(raw, f"/{bucket}/k", STREAMING, chunked=chunked)
    answer = upload.send(upload.signer.signed_chunks(seed_of(upload.headers), PIECES))
    assert answer.status == 200, answer
    assert body_of(s3, bucket, "k") == BODY


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "transfer-encoding"])
def test_signed_chunks_with_a_trailer(raw, s3, bucket, algorithm, chunked):
    data = BODY[:3000]
    value = checksum(algorithm, data)
    upload = Streamed(raw, f"/{bucket}/k", STREAMING_TRAILER, data, header(algorithm), chunked)
    body = upload.signer.signed_chunks(seed_of(upload.headers), [data], [(header(algorithm), value)])
    answer = upload.send(body)
    assert answer.status == 200, answer
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == value
    assert body_of(s3, bucket, "k") == data


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "transfer-encoding"])
def test_unsigned_chunks_with_a_trailer(raw, s3, bucket, algorithm, chunked):
    data = BODY[:3000]
    value = checksum(algorithm, data)
    upload = Streamed(raw, f"/{bucket}/k", STREAMING_UNSIGNED_TRAILER, data, header(algorithm), chunked)
    answer = upload.send(unsigned_chunks([data[:1000], data[1000:]], [(header(algorithm), value)]))
    assert answer.status == 200, answer
    assert answer.header(header(algorithm)) == value
    assert body_of(s3, bucket, "k") == data


def test_an_empty_body_in_chunks(raw, s3, bucket):
    upload = Streamed(raw, f"/{bucket}/k", STREAMING, b"")
    assert upload.send(upload.signer.signed_chunks(seed_of(upload.headers), [])).status == 200
    assert body_of(s3, bucket, "k") == b""


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("aws-chunked", None), ("aws-chunked,gzip", "gzip"), ("gzip, aws-chunked", "gzip"), ("gzip,br,aws-chunked", "gzip,br")],
)
def test_stored_encoding_loses_aws_chunked(raw, s3, bucket, sent, kept):
    signer = Signer()
    headers = [("Host", raw.host), ("Content-Encoding", sent), ("x-amz-decoded-content-length", "5")]
    headers = signer.headers("PUT", f"/{bucket}/k", headers, STREAMING)
    body = signer.signed_chunks(seed_of(headers), [b"hello"])
    answer = raw.send("PUT", f"/{bucket}/k", [*headers, ("Content-Length", str(len(body)))], body)
    assert answer.status == 200, answer
    encoding = s3.head_object(Bucket=bucket, Key="k").get("ContentEncoding")
    assert (encoding or "").replace(" ", "") == (kept or "")


def damaged(body, what):
    """`body` of signed chunks with one thing wrong."""
    match what:
        case "data changed":
            return body.replace(b"hello", b"hellO")
        case "signature changed":
            at = body.index(b"chunk-signature=") + 20
            return body[:at] + (b"0" if body[at : at + 1] != b"0" else b"1") + body[at + 1 :]
        case "chunks swapped":
            first, second, rest = body.split(b"\r\n", 4)[:2], body.split(b"\r\n", 4)[2:4], body.split(b"\r\n", 4)[4]
            return b"\r\n".join([*second, *first, rest])
        case "no last chunk":
            return body[: body.rindex(b"0;chunk-signature=")]
        case "size is no number":
            return body.replace(b"5;chunk", b"5x;chunk", 1)
        case "size overflows":
            return body.replace(b"5;chunk", b"fffffffffffffffff;chunk", 1)
        case "size with 0x":
            return body.replace(b"5;chunk", b"0x5;chunk", 1)
        case "size negative":
            return body.replace(b"5;chunk", b"-5;chunk", 1)
        case "line without end":
            return b"5;chunk-signature=" + b"a" * 100_000
        case "no line break after data":
            return body.replace(b"hello\r\n", b"helloXX", 1)
        case "no signature":
            return b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"
        case "not chunked at all":
            return b"helloworld"
        case "data after the end":
            return body + b"more"


DAMAGES = [
    "data changed", "signature changed", "chunks swapped", "no last chunk", "size is no number", "size overflows",
    "size with 0x", "size negative", "line without end", "no line break after data", "no signature",
    "not chunked at all",
]


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "transfer-encoding"])
def test_damaged_chunks_store_nothing(raw, s3, bucket, nothing_stored, what, chunked):
    upload = Streamed(raw, f"/{bucket}/k", STREAMING, b"helloworld", chunked=chunked)
    body = damaged(upload.signer.signed_chunks(seed_of(upload.headers), [b"hello", b"world"]), what)
    answer = upload.send(body)
    assert answer is not None and answer.status in (400, 403), answer
    assert answer.code in (
        "SignatureDoesNotMatch", "IncompleteBody", "InvalidChunkSizeError", "InvalidRequest", "XAmzContentSHA256Mismatch",
        "MalformedTrailerError", "InvalidArgument",
    ), answer


@pytest.mark.parametrize("declared", ["9", "11", "abc", "-1", "", None])
def test_the_decoded_length_must_be_right(raw, s3, bucket, nothing_stored, declared):
    signer = Signer()
    headers = [("Host", raw.host), ("Content-Encoding", "aws-chunked")]
    if declared is not None:
        headers.append(("x-amz-decoded-content-length", declared))
    headers = signer.headers("PUT", f"/{bucket}/k", headers, STREAMING)
    body = signer.signed_chunks(seed_of(headers), [b"hello", b"world"])
    answer = raw.send("PUT", f"/{bucket}/k", [*headers, ("Content-Length", str(len(body)))], body)
    assert answer.status in (400, 411), answer


def trailer_upload(raw, bucket, mode, announced="x-amz-checksum-crc32"):
    return Streamed(raw, f"/{bucket}/k", mode, b"hello", announced)


@pytest.mark.parametrize(
    ("trailers", "codes"),
    [
        ([("x-amz-checksum-crc32", checksum("CRC32", b"other"))], {"BadDigest"}),
        ([("x-amz-checksum-crc32", "AA")], {"InvalidRequest", "InvalidDigest", "MalformedTrailerError", "BadDigest"}),
        ([("x-amz-checksum-sha1", checksum("SHA1", b"hello"))], {"MalformedTrailerError", "InvalidRequest"}),
        ([], {"MalformedTrailerError", "InvalidRequest", "IncompleteBody"}),
    ],
    ids=["wrong value", "malformed value", "undeclared name", "missing"],
)
@pytest.mark.parametrize("mode", [STREAMING_TRAILER, STREAMING_UNSIGNED_TRAILER])
def test_a_wrong_trailer_stores_nothing(raw, s3, bucket, nothing_stored, mode, trailers, codes):
    upload = trailer_upload(raw, bucket, mode)
    if mode == STREAMING_TRAILER:
        body = upload.signer.signed_chunks(seed_of(upload.headers), [b"hello"], trailers)
    else:
        body = unsigned_chunks([b"hello"], trailers)
    answer = upload.send(body)
    assert (answer.status, answer.code in codes) == (400, True), answer


def test_a_changed_trailer_breaks_its_signature(raw, s3, bucket, nothing_stored):
    upload = trailer_upload(raw, bucket, STREAMING_TRAILER)
    trailers = [("x-amz-checksum-crc32", checksum("CRC32", b"hello"))]
    body = upload.signer.signed_chunks(seed_of(upload.headers), [b"hello"], trailers)
    at = body.index(b"x-amz-trailer-signature:") + 30
    answer = upload.send(body[:at] + (b"0" if body[at : at + 1] != b"0" else b"1") + body[at + 1 :])
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("mode", ["STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "STREAMING-UNKNOWN", "STREAMING-UNSIGNED-PAYLOAD"])
def test_a_mode_that_cannot_be_decoded_is_never_stored(raw, s3, bucket, nothing_stored, mode):
    upload = Streamed(raw, f"/{bucket}/k", mode, b"hello")
    answer = upload.send(b"5\r\nhello\r\n0\r\n\r\n")
    assert (answer.status, answer.code) in ((501, "NotImplemented"), (400, "InvalidArgument")), answer


@pytest.mark.parametrize("mode", [STREAMING, STREAMING_TRAILER, STREAMING_UNSIGNED_TRAILER])
def test_a_wrong_signature_is_seen_before_the_body_mode(raw, s3, bucket, nothing_stored, mode):
    signer = Signer(secret_key="wrong")
    headers = [("Host", raw.host), ("Content-Encoding", "aws-chunked"), ("x-amz-decoded-content-length", "5")]
    headers.append(("x-amz-trailer", "x-amz-checksum-crc32"))
    headers = signer.headers("PUT", f"/{bucket}/k", headers, mode)
    body = unsigned_chunks([b"hello"], [("x-amz-checksum-crc32", checksum("CRC32", b"hello"))])
    answer = raw.send("PUT", f"/{bucket}/k", [*headers, ("Content-Length", str(len(body)))], body)
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")


def test_a_body_that_breaks_off_stores_nothing(raw, server, s3, bucket, nothing_stored):
    headers = raw.signed("PUT", f"/{bucket}/k", [], BODY)
    with Connection(server.address) as connection:
        connection.send(head_bytes("PUT", f"/{bucket}/k", headers) + BODY[:100_000])
        connection.half_close()
        answer = connection.read_response()
    assert answer is None or answer.status == 400


def test_the_payload_hash_is_verified(raw, s3, bucket, nothing_stored):
    answer = raw.request("PUT", f"/{bucket}/k", [], b"hello", payload_hash=sha256(b"other"))
    assert (answer.status, answer.code) == (400, "XAmzContentSHA256Mismatch")
    answer = raw.request("PUT", f"/{bucket}/k", [], b"hello", payload_hash="nonsense")
    assert (answer.status, answer.code) == (400, "InvalidArgument")
