"""Bad input -> status and code: the table, and nothing else.

A row is a name, what to send, and what must come back. What to send is a function of `Target`, which knows the server,
a bucket that exists and how to sign; it returns the bytes to put on the wire. `allowed` lists (status, code) pairs;
the code is None where an answer has no document, and CLOSED where the server may close without a word, as it may on
broken HTTP. After each row the server must be alive
and must have stored nothing.

Sections are the kinds of issue 2 ("Bad input") and of the security catalogue.
"""

import dataclasses
import datetime
import typing

from harness.checksums import checksum, md5
from harness.raw import Raw, head_bytes
from harness.sigv4 import EMPTY_SHA256, STREAMING, UNSIGNED, Signer, amz_date, now

CLOSED = (None, None)
KIB = 1 << 10
MIB = 1 << 20


@dataclasses.dataclass
class Target:
    """Where a row is sent."""

    raw: Raw
    bucket: str

    @property
    def key(self):
        return f"/{self.bucket}/bad"

    def put(self, headers=(), body=b"x", target=None, signer=None, payload_hash=None, host=None, drop=(), length=True):
        """A signed PUT of an object, as bytes; `drop` removes headers after signing."""
        target = target or self.key
        signed = self.raw.signed(
            "PUT", target, headers, body, payload_hash=payload_hash, signer=signer, host=host, length=length
        )
        kept = [(name, value) for name, value in signed if name.lower() not in drop]
        return head_bytes("PUT", target, kept) + body

    def ask(self, method, target, headers=(), body=b"", **rest):
        """Any signed request, as bytes."""
        return head_bytes(method, target, self.raw.signed(method, target, headers, body, **rest)) + body

    def post(self, query, body, **rest):
        return self.ask("POST", f"/{self.bucket}?{query}", [("Content-MD5", md5(body))], body, **rest)

    def plain(self, text):
        """Bytes of a request that is written out, with `{host}` and `{bucket}` filled in."""
        return text.replace("{host}", self.raw.host).replace("{bucket}", self.bucket).encode("latin-1")


@dataclasses.dataclass
class Row:
    name: str
    send: typing.Callable[[Target], bytes]
    allowed: list
    # The client stops sending after this: half a body, half a head.
    half_close: bool = False


def at(**shift):
    return Signer(when=now() + datetime.timedelta(**shift))


def authorization(value):
    """A PUT whose Authorization is this text."""

    def send(target):
        headers = [("Host", target.raw.host), ("x-amz-date", amz_date(now())), ("x-amz-content-sha256", UNSIGNED)]
        headers += [("Authorization", value), ("Content-Length", "1")]
        return head_bytes("PUT", target.key, headers) + b"x"

    return send


def changed_authorization(old, new):
    """A rightly signed PUT in whose Authorization a piece is replaced."""

    def send(target):
        signed = target.raw.signed("PUT", target.key, [], b"x")
        signed = [(name, value.replace(old, new) if name == "Authorization" else value) for name, value in signed]
        return head_bytes("PUT", target.key, signed) + b"x"

    return send


def later_header(*headers):
    """A rightly signed PUT to which headers are added afterwards."""

    def send(target):
        signed = target.raw.signed("PUT", target.key, [], b"x")
        return head_bytes("PUT", target.key, [*signed, *headers]) + b"x"

    return send


def presigned(**choices):
    """A PUT signed in the query."""

    def send(target):
        path = Signer(when=choices.pop("when", None)).presign("PUT", target.key, target.raw.host, **choices)
        return head_bytes("PUT", path, [("Host", target.raw.host), ("Content-Length", "1")]) + b"x"

    return send


DENIED = (403, "AccessDenied")
# Amazon says 400; the public S3 suite wants 403.
OUT_OF_RANGE = [(400, "AuthorizationQueryParametersError"), (403, "AuthorizationQueryParametersError")]
MISMATCH = (403, "SignatureDoesNotMatch")
MALFORMED_AUTHORIZATION = (400, "AuthorizationHeaderMalformed")
MALFORMED_XML = (400, "MalformedXML")
BAD_NAME = (400, "InvalidBucketName")
BAD_ARGUMENT = (400, "InvalidArgument")
BAD_REQUEST = (400, "InvalidRequest")
BAD_URI = (400, "InvalidURI")
BAD_HTTP = [(400, None), (400, "BadRequest"), BAD_REQUEST, CLOSED]

SIGNATURES = [
    Row("no authorization at all", lambda t: t.put(drop=["authorization"]), [DENIED]),
    Row("empty authorization", authorization(""), [DENIED, MALFORMED_AUTHORIZATION, BAD_ARGUMENT]),
    Row("authorization of another kind", authorization("Basic YTpi"), [DENIED, BAD_ARGUMENT, MALFORMED_AUTHORIZATION]),
    Row("version 2 in the header", authorization("AWS a:b"), [DENIED, BAD_ARGUMENT, BAD_REQUEST, (403, "InvalidAccessKeyId")]),
    Row("authorization without its parts", authorization("AWS4-HMAC-SHA256"), [MALFORMED_AUTHORIZATION]),
    Row("authorization with junk", authorization("AWS4-HMAC-SHA256 ,,,=,="), [MALFORMED_AUTHORIZATION]),
    Row("wrong secret", lambda t: t.put(signer=Signer(secret_key="wrong")), [MISMATCH]),
    Row("unknown access key", lambda t: t.put(signer=Signer(access_key="NOBODY0000")), [(403, "InvalidAccessKeyId")]),
    Row("access key with a slash", lambda t: t.put(signer=Signer(access_key="a/b")), [MALFORMED_AUTHORIZATION, (403, "InvalidAccessKeyId")]),
    Row("a bit of the signature changed", changed_authorization("Signature=", "Signature=0"), [MISMATCH, MALFORMED_AUTHORIZATION]),
    Row("signature in capitals of another alphabet", changed_authorization("Signature=", "Signature=Z"), [MISMATCH, MALFORMED_AUTHORIZATION]),
    Row("host not signed", changed_authorization("host;", ""), [MISMATCH, DENIED, MALFORMED_AUTHORIZATION]),
    Row("wrong service", lambda t: t.put(signer=Signer(service="iam")), [MALFORMED_AUTHORIZATION, MISMATCH, DENIED]),
    Row("scope of another kind", changed_authorization("aws4_request", "aws5_request"), [MALFORMED_AUTHORIZATION]),
    Row("scope of another day", changed_authorization(f"/{now():%Y%m%d}/", "/20010101/"), [MALFORMED_AUTHORIZATION, MISMATCH, DENIED]),
    Row("body changed after signing", lambda t: t.put(body=b"x").removesuffix(b"x") + b"y", [(400, "XAmzContentSHA256Mismatch")]),
    Row("unsigned x-amz header added", later_header(("x-amz-meta-a", "1")), [DENIED, MISMATCH]),
    Row("unsigned x-amz-acl added", later_header(("x-amz-acl", "private")), [DENIED, MISMATCH]),
    Row("date twice", later_header(("x-amz-date", amz_date(now()))), [(400, "InvalidRequest"), BAD_ARGUMENT, MISMATCH, DENIED, (400, "BadRequest")]),
    Row("authorization twice", later_header(("Authorization", "AWS4-HMAC-SHA256 x")), [BAD_REQUEST, BAD_ARGUMENT, MALFORMED_AUTHORIZATION, (400, "BadRequest")]),
    Row("no payload hash", lambda t: t.put(drop=["x-amz-content-sha256"]), [BAD_REQUEST, MISMATCH, (400, "MissingSecurityHeader"), DENIED]),
    Row("payload hash that is none", lambda t: t.put(payload_hash="beef"), [BAD_ARGUMENT]),
    Row("payload hash of something else", lambda t: t.put(payload_hash=EMPTY_SHA256), [(400, "XAmzContentSHA256Mismatch")]),
    Row("date that is none", lambda t: t.put([("x-amz-date", "yesterday")]), [DENIED, MALFORMED_AUTHORIZATION, MISMATCH]),
    Row("no date", lambda t: t.put(drop=["x-amz-date"]), [DENIED, MISMATCH]),
    Row("16 minutes late", lambda t: t.put(signer=at(minutes=-16)), [(403, "RequestTimeTooSkewed")]),
    Row("16 minutes early", lambda t: t.put(signer=at(minutes=16)), [(403, "RequestTimeTooSkewed")]),
    Row("a year late", lambda t: t.put(signer=at(days=-365)), [(403, "RequestTimeTooSkewed")]),
    Row("presigned long ago", presigned(when=now() - datetime.timedelta(hours=2)), [DENIED]),
    Row("presigned for too long", presigned(expires=604801), OUT_OF_RANGE),
    Row("presigned for no time", presigned(expires=0), [DENIED, (400, "AuthorizationQueryParametersError")]),
    Row("presigned for a negative time", presigned(expires=-5), OUT_OF_RANGE),
    Row("presigned for a word", presigned(expires="long"), [(400, "AuthorizationQueryParametersError")]),
    Row("presigned with an empty signature", lambda t: head_bytes("PUT", Signer().presign("PUT", t.key, t.raw.host).rsplit("=", 1)[0] + "=", [("Host", t.raw.host), ("Content-Length", "1")]) + b"x", [MISMATCH, (400, "AuthorizationQueryParametersError")]),
    Row("credentials in query and header", lambda t: t.put(target=Signer().presign("PUT", t.key, t.raw.host)), [BAD_ARGUMENT]),
    Row("streaming mode without any signature", lambda t: head_bytes("PUT", t.key, [("Host", t.raw.host), ("x-amz-content-sha256", STREAMING), ("x-amz-decoded-content-length", "1"), ("Content-Length", "1")]) + b"x", [DENIED, BAD_REQUEST]),
    Row("credential in the query without a signature", lambda t: head_bytes("PUT", f"{t.key}?X-Amz-Credential=a%2F20260101%2Fus-east-1%2Fs3%2Faws4_request", [("Host", t.raw.host), ("Content-Length", "1")]) + b"x", [DENIED, (400, "AuthorizationQueryParametersError")]),
    Row("anonymous", lambda t: head_bytes("PUT", t.key, [("Host", t.raw.host), ("Content-Length", "1")]) + b"x", [DENIED]),
    Row("anonymous listing", lambda t: head_bytes("GET", "/", [("Host", t.raw.host)]), [DENIED]),
]

DIGESTS = [
    Row("Content-MD5 of something else", lambda t: t.put([("Content-MD5", md5(b"y"))]), [(400, "BadDigest")]),
    Row("Content-MD5 too short", lambda t: t.put([("Content-MD5", "YWJj")]), [(400, "InvalidDigest")]),
    Row("Content-MD5 no base64", lambda t: t.put([("Content-MD5", "#" * 24)]), [(400, "InvalidDigest")]),
    Row("Content-MD5 empty", lambda t: t.put([("Content-MD5", "")]), [(400, "InvalidDigest")]),
    Row("CRC32 of something else", lambda t: t.put([("x-amz-checksum-crc32", checksum("CRC32", b"y"))]), [(400, "BadDigest")]),
    Row("CRC32 of another length", lambda t: t.put([("x-amz-checksum-crc32", "AAAA")]), [BAD_REQUEST, (400, "InvalidDigest"), (400, "BadDigest")]),
    Row("SHA256 of something else", lambda t: t.put([("x-amz-checksum-sha256", checksum("SHA256", b"y"))]), [(400, "BadDigest")]),
    Row("unknown algorithm", lambda t: t.put([("x-amz-checksum-algorithm", "ROT13")], target=f"{t.key}"), [BAD_REQUEST, (501, "NotImplemented"), (200, None)]),
    Row("unknown algorithm named by the SDK header", lambda t: t.put([("x-amz-sdk-checksum-algorithm", "ROT13")]), [BAD_REQUEST]),
    Row("algorithm named and no checksum sent", lambda t: t.put([("x-amz-sdk-checksum-algorithm", "SHA1"), ("x-amz-trailer", "x-amz-checksum-sha1")]), [BAD_REQUEST, (400, "MalformedTrailerError"), (400, "InvalidArgument")]),
]

LENGTHS = [
    Row("no length", lambda t: t.put(length=False, body=b""), [(411, "MissingContentLength")]),
    Row("negative length", lambda t: t.put([("Content-Length", "-1")], length=False), BAD_HTTP),
    Row("length that is no number", lambda t: t.put([("Content-Length", "ten")], length=False), BAD_HTTP),
    Row("empty length", lambda t: t.put([("Content-Length", "")], length=False), BAD_HTTP),
    Row("length over 2^64", lambda t: t.put([("Content-Length", "99999999999999999999999")], length=False), BAD_HTTP),
    Row("two lengths", lambda t: t.put([("Content-Length", "1"), ("Content-Length", "2")], length=False), BAD_HTTP),
    Row("length and chunks", lambda t: t.put([("Transfer-Encoding", "chunked")], body=b"1\r\nx\r\n0\r\n\r\n"), [*BAD_HTTP, (400, "XAmzContentSHA256Mismatch")]),
    Row("over 5 GiB", lambda t: t.put([("Content-Length", str(5 * KIB * MIB + 1))], length=False), [(400, "EntityTooLarge")]),
    Row("body shorter than its length", lambda t: t.put([("Content-Length", "10")], length=False, body=b"x"), [(400, "IncompleteBody"), (400, "RequestTimeout"), CLOSED], half_close=True),
    Row("chunks broken off", lambda t: t.put([("Transfer-Encoding", "chunked")], length=False, payload_hash=UNSIGNED, body=b"5\r\nhel"), [(400, "IncompleteBody"), (400, None), CLOSED], half_close=True),
    Row("chunk size that is no number", lambda t: t.put([("Transfer-Encoding", "chunked")], length=False, payload_hash=UNSIGNED, body=b"xyz\r\nhello\r\n0\r\n\r\n"), [(400, "IncompleteBody"), (400, "InvalidRequest"), (400, None), CLOSED]),
    Row("unknown transfer encoding", lambda t: t.put([("Transfer-Encoding", "gzip")], length=False, payload_hash=UNSIGNED, body=b"x"), [*BAD_HTTP, (501, None), (501, "NotImplemented"), (411, "MissingContentLength")], half_close=True),
]

NAMES = [
    Row("key of 1,025 bytes", lambda t: t.put(target=f"/{t.bucket}/{'k' * 1025}"), [(400, "KeyTooLongError")]),
    Row("key of 1,025 bytes in 3-byte letters", lambda t: t.put(target=f"/{t.bucket}/{'%E2%82%AC' * 341 + 'aaa'}"), [(400, "KeyTooLongError")]),
    Row("key that is not UTF-8", lambda t: t.put(target=f"/{t.bucket}/%FF%FE"), [BAD_URI, BAD_ARGUMENT, BAD_REQUEST]),
    Row("key of an overlong encoding", lambda t: t.put(target=f"/{t.bucket}/%C0%AF"), [BAD_URI, BAD_ARGUMENT, BAD_REQUEST]),
    Row("key with a lone surrogate", lambda t: t.put(target=f"/{t.bucket}/%ED%A0%80"), [BAD_URI, BAD_ARGUMENT, BAD_REQUEST]),
    Row("percent without digits", lambda t: t.put(target=f"/{t.bucket}/a%"), [BAD_URI, BAD_ARGUMENT, BAD_REQUEST]),
    Row("percent with other letters", lambda t: t.put(target=f"/{t.bucket}/a%zz"), [BAD_URI, BAD_ARGUMENT, BAD_REQUEST]),
    Row("bucket that leaves the path", lambda t: t.ask("PUT", "/.."), [BAD_NAME]),
    Row("bucket encoded twice", lambda t: t.ask("PUT", "/a%252Fb"), [BAD_NAME]),
    Row("bucket with a slash in it", lambda t: t.ask("PUT", "/aaa%2Fbbb"), [BAD_NAME, BAD_REQUEST, (404, "NoSuchBucket")]),
    Row("bucket in capitals", lambda t: t.ask("PUT", "/UPPER"), [BAD_NAME]),
    Row("bucket of two letters", lambda t: t.ask("PUT", "/ab"), [BAD_NAME]),
    Row("bucket of 64 letters", lambda t: t.ask("PUT", f"/{'a' * 64}"), [BAD_NAME]),
    Row("bucket like an address", lambda t: t.ask("PUT", "/192.168.0.1"), [BAD_NAME]),
    Row("bucket with a control character", lambda t: t.ask("PUT", "/abc%00def"), [BAD_NAME]),
    Row("bucket that is not UTF-8", lambda t: t.ask("PUT", "/abc%FF"), [BAD_NAME, BAD_URI]),
    Row("bucket that cannot be, read", lambda t: t.ask("HEAD", "/$extremelyunlikelytoexist$"), [(400, None), (404, None)]),
    Row("copy from above", lambda t: t.ask("PUT", t.key, [("x-amz-copy-source", "../../etc/passwd")]), [BAD_ARGUMENT, BAD_REQUEST, BAD_NAME, (404, "NoSuchBucket")]),
    Row("copy from a source encoded twice", lambda t: t.ask("PUT", t.key, [("x-amz-copy-source", f"{t.bucket}%252Fa")]), [BAD_ARGUMENT, BAD_REQUEST, BAD_NAME]),
    Row("copy of a version that cannot be", lambda t: t.ask("PUT", t.key, [("x-amz-copy-source", f"{t.bucket}/a?versionId=../x")]), [BAD_ARGUMENT, (404, "NoSuchVersion"), (404, "NoSuchKey")]),
    Row("version that cannot be", lambda t: t.ask("GET", f"{t.key}?versionId=nonsense"), [BAD_ARGUMENT, (404, "NoSuchVersion"), (404, "NoSuchKey")]),
]


def deep_xml(depth):
    return b"<Delete>" + b"<a>" * depth + b"</a>" * depth + b"</Delete>"


BOMB = b"""<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><Delete><Object><Key>&c;</Key></Object></Delete>"""
EXTERNAL = b"""<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<Delete><Object><Key>&x;</Key></Object></Delete>"""
PART_XML = "<Part><PartNumber>{0}</PartNumber><ETag>e</ETag></Part>"


def complete(body):
    def send(target):
        return target.ask("POST", f"{target.key}?uploadId={'0' * 32}", [], body)

    return send


DOCUMENTS = [
    Row("delete list that is no XML", lambda t: t.post("delete=", b"not xml"), [MALFORMED_XML]),
    Row("empty delete list", lambda t: t.post("delete=", b""), [MALFORMED_XML, (400, "MissingRequestBodyError")]),
    Row("delete list without objects", lambda t: t.post("delete=", b"<Delete/>"), [MALFORMED_XML]),
    Row("delete list cut off", lambda t: t.post("delete=", b"<Delete><Object><Key>a</Key>"), [MALFORMED_XML]),
    Row("delete list of another kind", lambda t: t.post("delete=", b"<Other><Object><Key>a</Key></Object></Other>"), [MALFORMED_XML]),
    Row("delete list that is not UTF-8", lambda t: t.post("delete=", b"<Delete><Object><Key>\xff</Key></Object></Delete>"), [MALFORMED_XML]),
    Row("deep XML", lambda t: t.post("delete=", deep_xml(10_000)), [MALFORMED_XML]),
    Row("huge XML", lambda t: t.post("delete=", b"<Delete>" + b" " * (3 * MIB) + b"</Delete>"), [MALFORMED_XML, (400, "EntityTooLarge"), (400, "MaxMessageLengthExceeded")]),
    Row("entities that grow", lambda t: t.post("delete=", BOMB), [MALFORMED_XML]),
    Row("entity that reads a file", lambda t: t.post("delete=", EXTERNAL), [MALFORMED_XML]),
    Row("a thousand attributes", lambda t: t.post("delete=", b"<Delete " + b" ".join(b'a%d="b"' % n for n in range(5000)) + b"><Object/></Delete>"), [MALFORMED_XML]),
    Row("1,001 keys", lambda t: t.post("delete=", b"<Delete>" + b"<Object><Key>a</Key></Object>" * 1001 + b"</Delete>"), [MALFORMED_XML]),
    Row("delete list without a digest", lambda t: t.ask("POST", f"/{t.bucket}?delete=", [], b"<Delete><Object><Key>a</Key></Object></Delete>"), [BAD_REQUEST]),
    Row("location that is no XML", lambda t: t.ask("PUT", "/new-bucket-a", [], b"{}"), [MALFORMED_XML]),
    Row("location of another kind", lambda t: t.ask("PUT", "/new-bucket-b", [], b"<Other/>"), [MALFORMED_XML]),
    Row("complete that is no XML", complete(b"nonsense"), [MALFORMED_XML, (404, "NoSuchUpload")]),
    Row("complete without parts", complete(b"<CompleteMultipartUpload/>"), [MALFORMED_XML, (404, "NoSuchUpload")]),
    Row("complete of an unknown upload", complete(b"<CompleteMultipartUpload>" + PART_XML.format(1).encode() + b"</CompleteMultipartUpload>"), [(404, "NoSuchUpload")]),
    Row("complete with 10,001 parts", complete(b"<CompleteMultipartUpload>" + "".join(PART_XML.format(n) for n in range(1, 10_002)).encode() + b"</CompleteMultipartUpload>"), [MALFORMED_XML, BAD_ARGUMENT, BAD_REQUEST, (404, "NoSuchUpload")]),
    Row("complete with a part that is no number", complete(b"<CompleteMultipartUpload>" + PART_XML.format("one").encode() + b"</CompleteMultipartUpload>"), [MALFORMED_XML, BAD_ARGUMENT, (404, "NoSuchUpload")]),
]

PARAMETERS = [
    Row("max-keys a word", lambda t: t.ask("GET", f"/{t.bucket}?max-keys=many"), [BAD_ARGUMENT]),
    Row("max-keys negative", lambda t: t.ask("GET", f"/{t.bucket}?max-keys=-1"), [BAD_ARGUMENT]),
    Row("max-keys over 2^64", lambda t: t.ask("GET", f"/{t.bucket}?max-keys=99999999999999999999"), [BAD_ARGUMENT]),
    Row("max-uploads a word", lambda t: t.ask("GET", f"/{t.bucket}?max-uploads=many&uploads="), [BAD_ARGUMENT]),
    Row("max-parts negative", lambda t: t.ask("GET", f"{t.key}?max-parts=-1&uploadId=x"), [BAD_ARGUMENT, (404, "NoSuchUpload")]),
    Row("unknown encoding", lambda t: t.ask("GET", f"/{t.bucket}?encoding-type=base64"), [BAD_ARGUMENT]),
    Row("forged token", lambda t: t.ask("GET", f"/{t.bucket}?continuation-token=forged&list-type=2"), [BAD_ARGUMENT, (200, None)]),
    Row("listing type 3", lambda t: t.ask("GET", f"/{t.bucket}?list-type=3"), [BAD_ARGUMENT, (501, "NotImplemented")]),
    Row("part 0", lambda t: t.put(target=f"{t.key}?partNumber=0&uploadId=x"), [BAD_ARGUMENT, (404, "NoSuchUpload")]),
    Row("part 10,001", lambda t: t.put(target=f"{t.key}?partNumber=10001&uploadId=x"), [BAD_ARGUMENT, (404, "NoSuchUpload")]),
    Row("part without a number", lambda t: t.put(target=f"{t.key}?uploadId=x"), [BAD_ARGUMENT, BAD_REQUEST, (501, "NotImplemented"), (405, "MethodNotAllowed")]),
    Row("part without an upload", lambda t: t.put(target=f"{t.key}?partNumber=1"), [BAD_ARGUMENT, BAD_REQUEST, (501, "NotImplemented"), (405, "MethodNotAllowed")]),
    Row("part of an unknown upload", lambda t: t.put(target=f"{t.key}?partNumber=1&uploadId={'0' * 32}"), [(404, "NoSuchUpload")]),
    Row("unknown sub-resource of a write", lambda t: t.put(target=f"{t.key}?unheard-of="), [(501, "NotImplemented")]),
    Row("unknown sub-resource of a delete", lambda t: t.ask("DELETE", f"/{t.bucket}?unheard-of="), [(501, "NotImplemented")]),
    Row("two sub-resources", lambda t: t.ask("GET", f"/{t.bucket}?acl=&policy="), [BAD_REQUEST, BAD_ARGUMENT, (501, "NotImplemented"), (200, None), (404, "NoSuchBucketPolicy")]),
    Row("metadata over 2 KiB", lambda t: t.put([("x-amz-meta-a", "v" * 2100)]), [(400, "MetadataTooLarge")]),
    Row("metadata with a control character", lambda t: t.put([("x-amz-meta-a", "v\x01")]), [*BAD_HTTP, BAD_ARGUMENT, MISMATCH]),
    Row("unknown storage class", lambda t: t.put([("x-amz-storage-class", "CLAY")]), [(400, "InvalidStorageClass"), (501, "NotImplemented")]),
    Row("unknown canned acl", lambda t: t.put([("x-amz-acl", "everybody")]), [BAD_ARGUMENT, (501, "NotImplemented")]),
    Row("If-None-Match of a tag on a write", lambda t: t.put([("If-None-Match", '"abc"')]), [(501, "NotImplemented")]),
    Row("both conditions on a write", lambda t: t.put([("If-None-Match", "*"), ("If-Match", "*")]), [BAD_REQUEST, BAD_ARGUMENT, (501, "NotImplemented"), (412, "PreconditionFailed"), (404, "NoSuchKey")]),
    Row("copy directive unknown", lambda t: t.ask("PUT", t.key, [("x-amz-copy-source", f"{t.bucket}/a"), ("x-amz-metadata-directive", "MIX")]), [BAD_ARGUMENT]),
    Row("SSE", lambda t: t.put([("x-amz-server-side-encryption", "AES256")]), [(501, "NotImplemented")]),
    Row("object lock", lambda t: t.put([("x-amz-object-lock-mode", "COMPLIANCE")]), [(501, "NotImplemented")]),
    Row("tags", lambda t: t.put([("x-amz-tagging", "a=b")]), [(501, "NotImplemented")]),
    Row("payload mode unknown", lambda t: t.put([("x-amz-decoded-content-length", "1")], payload_hash="STREAMING-NOBODY-KNOWS"), [(501, "NotImplemented"), BAD_ARGUMENT]),
]

BROKEN_HTTP = [
    Row("no HTTP at all", lambda t: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, BAD_HTTP, half_close=True),
    Row("line feeds only", lambda t: t.plain("GET / HTTP/1.1\nHost: {host}\n\n"), [*BAD_HTTP, DENIED], half_close=True),
    Row("version unknown", lambda t: t.plain("GET / HTTP/9.9\r\nHost: {host}\r\n\r\n"), [*BAD_HTTP, (505, None)], half_close=True),
    Row("no version", lambda t: t.plain("GET /\r\n\r\n"), BAD_HTTP, half_close=True),
    Row("method with a space", lambda t: t.plain("G ET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), BAD_HTTP, half_close=True),
    Row("folded header", lambda t: t.plain("GET / HTTP/1.1\r\nHost: {host}\r\nx-a: b\r\n c\r\n\r\n"), [*BAD_HTTP, DENIED], half_close=True),
    Row("space before the colon", lambda t: t.plain("GET / HTTP/1.1\r\nHost : {host}\r\n\r\n"), BAD_HTTP, half_close=True),
    Row("NUL in a header", lambda t: t.plain("GET / HTTP/1.1\r\nHost: {host}\r\nx-a: b\x00c\r\n\r\n"), BAD_HTTP, half_close=True),
    Row("a header of 200 KiB", lambda t: t.put([("x-amz-meta-a", "v" * 200 * KIB)]), [*BAD_HTTP, (431, None), (400, "RequestHeaderSectionTooLarge"), (400, "MetadataTooLarge")]),
    Row("a thousand headers", lambda t: t.put([(f"x-filler-{n}", "v") for n in range(1000)]), [*BAD_HTTP, (431, None), (400, "RequestHeaderSectionTooLarge")]),
    Row("a target of 100 KiB", lambda t: t.ask("GET", "/" + "a" * 100 * KIB), [*BAD_HTTP, (414, None), (431, None), BAD_NAME, BAD_URI, (400, "KeyTooLongError")]),
    Row("no host", lambda t: t.put(drop=["host"]), BAD_HTTP),
    Row("two hosts", later_header(("Host", "other")), [*BAD_HTTP, MISMATCH, BAD_ARGUMENT]),
    Row("target of another authority", lambda t: t.plain("GET http://elsewhere.example/ HTTP/1.1\r\nHost: {host}\r\n\r\n"), [*BAD_HTTP, DENIED]),
    Row("CONNECT", lambda t: t.plain("CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: {host}\r\n\r\n"), [*BAD_HTTP, DENIED, (405, None), (405, "MethodNotAllowed")]),
    Row("OPTIONS of everything", lambda t: t.plain("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n"), [*BAD_HTTP, BAD_NAME, DENIED, (405, None), (405, "MethodNotAllowed"), (501, "NotImplemented")]),
    Row("upgrade to HTTP/2", lambda t: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50, BAD_HTTP, half_close=True),
]

ROWS = [*SIGNATURES, *DIGESTS, *LENGTHS, *NAMES, *DOCUMENTS, *PARAMETERS, *BROKEN_HTTP]

assert len({row.name for row in ROWS}) == len(ROWS), "a row's name is its own"
