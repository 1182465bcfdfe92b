"""Signature Version 4 and the aws-chunked framings, written out so that a test can damage each step.

Paths and queries are taken raw, as they will stand in the request line: never decoded, encoded or normalised.
"""

import datetime
import hashlib
import hmac

from harness.server import REGION, ROOT_ACCESS_KEY, ROOT_SECRET_KEY

UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def amz_date(when):
    return when.strftime("%Y%m%dT%H%M%SZ")


class Signer:
    """Signs as one user for one moment, region and service; every part can be chosen."""

    def __init__(
        self, access_key=ROOT_ACCESS_KEY, secret_key=ROOT_SECRET_KEY, when=None, region=REGION, service="s3"
    ):
        self.access_key, self.secret_key = access_key, secret_key
        self.when = when or now()
        self.region, self.service = region, service

    @property
    def scope(self):
        return f"{self.when:%Y%m%d}/{self.region}/{self.service}/aws4_request"

    def key(self):
        key = f"AWS4{self.secret_key}".encode()
        for part in self.scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def sign_text(self, text):
        return hmac.new(self.key(), text.encode(), "sha256").hexdigest()

    def signature(self, method, target, headers, signed_names, payload_hash):
        """Of a request whose `target` is the raw path and query."""
        path, _, query = target.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        canonical_query = "&".join(f"{n}={v}" for n, v in sorted((n, v) for n, _, v in pairs))
        lines = []
        for name in signed_names:
            values = [" ".join(value.split()) for key, value in headers if key.lower() == name]
            lines.append(f"{name}:{','.join(values)}\n")
        canonical = "\n".join(
            [method, path, canonical_query, "".join(lines), ";".join(signed_names), payload_hash]
        )
        text = "\n".join(
            ["AWS4-HMAC-SHA256", amz_date(self.when), self.scope, sha256(canonical.encode("utf-8", "surrogateescape"))]
        )
        return self.sign_text(text)

    def headers(self, method, target, headers, payload_hash, unsigned=()):
        """`headers` with date, payload hash and Authorization; all but those in `unsigned` are signed."""
        headers = list(headers)
        given = {name.lower() for name, _ in headers}
        if "x-amz-date" not in given:
            headers.append(("x-amz-date", amz_date(self.when)))
        if "x-amz-content-sha256" not in given and payload_hash is not None:
            headers.append(("x-amz-content-sha256", payload_hash))
        leave_out = {"content-length", "transfer-encoding", "connection", "expect", "user-agent", *unsigned}
        names = sorted({name.lower() for name, _ in headers} - leave_out)
        signature = self.signature(method, target, headers, names, payload_hash or UNSIGNED)
        credential = f"{self.access_key}/{self.scope}"
        value = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
        return headers + [("Authorization", value)]

    def presign(self, method, path, host, expires=300, query="", headers=()):
        """The raw target of a presigned request."""
        names = sorted({"host", *(name.lower() for name, _ in headers)})
        parts = [query] if query else []
        parts += [
            "X-Amz-Algorithm=AWS4-HMAC-SHA256",
            f"X-Amz-Credential={self.access_key}%2F{self.scope.replace('/', '%2F')}",
            f"X-Amz-Date={amz_date(self.when)}",
            f"X-Amz-Expires={expires}",
            f"X-Amz-SignedHeaders={'%3B'.join(names)}",
        ]
        target = f"{path}?{'&'.join(parts)}"
        signature = self.signature(method, target, [("host", host), *headers], names, UNSIGNED)
        return f"{target}&X-Amz-Signature={signature}"

    def chunk_signature(self, previous, data):
        text = ["AWS4-HMAC-SHA256-PAYLOAD", amz_date(self.when), self.scope, previous, EMPTY_SHA256, sha256(data)]
        return self.sign_text("\n".join(text))

    def trailer_signature(self, previous, trailer):
        text = ["AWS4-HMAC-SHA256-TRAILER", amz_date(self.when), self.scope, previous, sha256(trailer)]
        return self.sign_text("\n".join(text))

    def signed_chunks(self, seed, pieces, trailers=None):
        """The framing of STREAMING-AWS4-HMAC-SHA256-PAYLOAD, and of its form with trailers when some are given."""
        out, previous = b"", seed
        for piece in [*pieces, b""]:
            previous = self.chunk_signature(previous, piece)
            out += f"{len(piece):x};chunk-signature={previous}\r\n".encode() + piece
            out += b"\r\n" if piece or trailers is None else b""
        if trailers is not None:
            text = b"".join(f"{name}:{value}\n".encode() for name, value in trailers)
            out += text.replace(b"\n", b"\r\n")
            out += f"x-amz-trailer-signature:{self.trailer_signature(previous, text)}\r\n\r\n".encode()
        return out


def unsigned_chunks(pieces, trailers):
    """The framing of STREAMING-UNSIGNED-PAYLOAD-TRAILER."""
    out = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return out + b"0\r\n" + b"".join(f"{name}:{value}\r\n".encode() for name, value in trailers) + b"\r\n"


def http_chunks(data, size=1000):
    """`Transfer-Encoding: chunked`, which may wrap aws-chunked."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


def seed_of(headers):
    """The signature in an Authorization header: what the first chunk's signature starts from."""
    return dict(headers)["Authorization"].rsplit("Signature=", 1)[1]
