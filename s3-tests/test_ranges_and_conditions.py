"""Ranges, the four If-* headers on reads, and conditional writes with their races."""

import concurrent.futures
import datetime

import pytest

from harness.clients import body_of, pattern, refusal

pytestmark = pytest.mark.transports

LENGTH = 300_000
BODY = pattern(LENGTH)


@pytest.fixture
def stored(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=BODY)
    return bucket


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, LENGTH - 1),
        ("bytes=65535-65536", 65535, 65536),
        ("bytes=65536-131071", 65536, 131071),
        ("bytes=1-299999", 1, LENGTH - 1),
        ("bytes=299999-", LENGTH - 1, LENGTH - 1),
        ("bytes=100-999999999999", 100, LENGTH - 1),
        ("bytes=-1", LENGTH - 1, LENGTH - 1),
        ("bytes=-70000", LENGTH - 70000, LENGTH - 1),
        ("bytes=-999999999", 0, LENGTH - 1),
    ],
)
def test_a_range_is_those_bytes(s3, stored, text, first, last):
    got = s3.get_object(Bucket=stored, Key="k", Range=text)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert got["ContentRange"] == f"bytes {first}-{last}/{LENGTH}"
    assert got["ContentLength"] == last - first + 1
    assert got["Body"].read() == BODY[first : last + 1]


@pytest.mark.parametrize("text", [f"bytes={LENGTH}-", "bytes=999999999999999999999-", "bytes=-0"])
def test_a_range_outside_is_refused(s3, stored, text):
    assert refusal(s3.get_object, Bucket=stored, Key="k", Range=text) == (416, "InvalidRange")


@pytest.mark.parametrize("text", ["bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=", "bytes=--5"])
def test_a_range_that_is_none_gives_the_whole(s3, stored, text):
    got = s3.get_object(Bucket=stored, Key="k", Range=text)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert got["Body"].read() == BODY


def test_an_empty_object_has_no_range(s3, bucket):
    s3.put_object(Bucket=bucket, Key="e", Body=b"")
    assert refusal(s3.get_object, Bucket=bucket, Key="e", Range="bytes=0-") == (416, "InvalidRange")


def test_read_conditions(s3, stored):
    head = s3.head_object(Bucket=stored, Key="k")
    etag, when = head["ETag"], head["LastModified"]
    earlier, later = when - datetime.timedelta(hours=1), when + datetime.timedelta(hours=1)

    def status(**conditions):
        statuses = set()
        for call in (s3.get_object, s3.head_object):
            try:
                statuses.add(call(Bucket=stored, Key="k", **conditions)["ResponseMetadata"]["HTTPStatusCode"])
            except s3.exceptions.ClientError as error:
                statuses.add(error.response["ResponseMetadata"]["HTTPStatusCode"])
        assert len(statuses) == 1, statuses
        return statuses.pop()

    assert status(IfMatch=etag) == status(IfMatch=etag.strip('"')) == status(IfMatch="*") == 200
    assert status(IfMatch='"0"') == 412
    assert status(IfNoneMatch=etag) == status(IfNoneMatch="*") == 304
    assert status(IfNoneMatch='"0"') == 200
    assert status(IfModifiedSince=earlier) == status(IfUnmodifiedSince=later) == 200
    assert status(IfModifiedSince=when) == 304
    assert status(IfUnmodifiedSince=earlier) == 412
    # RFC 9110: entity tags win over dates.
    assert status(IfMatch=etag, IfUnmodifiedSince=earlier) == 200
    assert status(IfNoneMatch=etag, IfModifiedSince=earlier) == 304


def test_not_modified_has_an_etag_and_no_body(raw, stored):
    etag = raw.request("HEAD", f"/{stored}/k").header("etag")
    answer = raw.request("GET", f"/{stored}/k", [("If-None-Match", etag)])
    assert (answer.status, answer.header("etag"), answer.body) == (304, etag, b"")


def test_create_only_if_absent(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")
    assert refusal(s3.put_object, Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*") == (412, "PreconditionFailed")
    assert body_of(s3, bucket, "k") == b"1"
    s3.delete_object(Bucket=bucket, Key="k")
    s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfNoneMatch="*")


def test_replace_only_what_was_seen(s3, bucket):
    assert refusal(s3.put_object, Bucket=bucket, Key="k", Body=b"", IfMatch='"0"') == (404, "NoSuchKey")
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    newer = s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=etag)["ETag"]
    assert refusal(s3.put_object, Bucket=bucket, Key="k", Body=b"3", IfMatch=etag) == (412, "PreconditionFailed")
    assert s3.get_object(Bucket=bucket, Key="k")["ETag"] == newer


def test_only_a_star_may_stand_in_if_none_match_of_a_put(s3, bucket):
    assert refusal(s3.put_object, Bucket=bucket, Key="k", Body=b"", IfNoneMatch='"0"') == (501, "NotImplemented")


def test_delete_only_what_was_seen(s3, bucket):
    assert refusal(s3.delete_object, Bucket=bucket, Key="k", IfMatch='"0"') == (404, "NoSuchKey")
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    assert refusal(s3.delete_object, Bucket=bucket, Key="k", IfMatch='"0"') == (412, "PreconditionFailed")
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=etag)
    assert refusal(s3.get_object, Bucket=bucket, Key="k") == (404, "NoSuchKey")


@pytest.mark.parametrize("condition", ["create", "replace"])
def test_of_racers_exactly_one_wins(s3, bucket, condition):
    arguments = {"IfNoneMatch": "*"}
    if condition == "replace":
        arguments = {"IfMatch": s3.put_object(Bucket=bucket, Key="k", Body=b"old")["ETag"]}

    def race(number):
        try:
            s3.put_object(Bucket=bucket, Key="k", Body=f"{number}".encode(), **arguments)
            return number, 200
        except s3.exceptions.ClientError as error:
            return number, error.response["ResponseMetadata"]["HTTPStatusCode"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(16)))
    winners = [number for number, status in outcomes if status == 200]
    assert len(winners) == 1
    assert {status for _, status in outcomes} <= {200, 409, 412}
    assert body_of(s3, bucket, "k") == f"{winners[0]}".encode()


def test_a_reader_sees_one_write_whole(s3, bucket):
    bodies = [pattern(200_000 + number, seed=number) for number in range(6)]
    s3.put_object(Bucket=bucket, Key="k", Body=bodies[0])

    def write(body):
        s3.put_object(Bucket=bucket, Key="k", Body=body)

    def read(_):
        got = s3.get_object(Bucket=bucket, Key="k")
        return got["ContentLength"], got["Body"].read()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(write, body) for body in bodies * 3]
        reads = list(pool.map(read, range(40)))
        for done in writes:
            done.result()
    for length, body in reads:
        assert len(body) == length and body in bodies
