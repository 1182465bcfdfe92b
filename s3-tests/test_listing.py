"""Listing, held against a model: sort the keys, cut them up, count."""

import random
import re
import urllib.parse

import pytest

from harness.clients import fresh_name, refusal

pytestmark = pytest.mark.transports

KEYS = sorted(
    [
        "a", "a/", "a/b", "a/b/c", "a/b/d", "a/c", "a0", "b/", "b//x", "b/ y", "c%d", "c%d/e", "d.e.f", "d.e.g",
        "d e", "e|f|g", "f\x01g", "f\x01h", "z/ü", "z/日本", "z/😀", "zz" * 100, "_", "~", "+", "&<>\"'",
    ],
    key=str.encode,
)


@pytest.fixture(scope="module")
def tree(s3):
    name = fresh_name()
    s3.create_bucket(Bucket=name)
    for key in KEYS:
        s3.put_object(Bucket=name, Key=key, Body=b"")
    return name


def model(keys, prefix="", delimiter="", after=""):
    """(kind, name) in listing order: keys, and common prefixes where their first key stands."""
    entries = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        entry = ("key", key)
        if delimiter:
            at = key.find(delimiter, len(prefix))
            if at >= 0:
                entry = ("prefix", key[: at + len(delimiter)])
        if entry[1].encode() > after.encode() and entry not in entries:
            entries.append(entry)
    return entries


def entries_of(page):
    keys = [("key", entry["Key"]) for entry in page.get("Contents", [])]
    prefixes = [("prefix", entry["Prefix"]) for entry in page.get("CommonPrefixes", [])]
    return sorted(keys + prefixes, key=lambda entry: entry[1].encode())


def pages_v2(s3, bucket, **arguments):
    token = {}
    while True:
        page = s3.list_objects_v2(Bucket=bucket, **arguments, **token)
        assert page["KeyCount"] == len(page.get("Contents", [])) + len(page.get("CommonPrefixes", []))
        yield page
        if not page["IsTruncated"]:
            assert "NextContinuationToken" not in page
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def pages_v1(s3, bucket, **arguments):
    marker = {}
    while True:
        page = s3.list_objects(Bucket=bucket, **arguments, **marker)
        yield page
        if not page["IsTruncated"]:
            return
        assert ("NextMarker" in page) == bool(arguments.get("Delimiter"))
        marker = {"Marker": page.get("NextMarker") or page["Contents"][-1]["Key"]}


@pytest.mark.parametrize("listing", [pages_v1, pages_v2])
@pytest.mark.parametrize("max_keys", [1, 2, 7, 1000])
@pytest.mark.parametrize("delimiter", ["", "/", "b", "%", " ", ".", "|", "\x01", "//", "ü", "d.e", "nowhere"])
def test_pages_agree_with_the_model(s3, tree, listing, max_keys, delimiter):
    pages = list(listing(s3, tree, MaxKeys=max_keys, Delimiter=delimiter))
    assert all(len(entries_of(page)) <= max_keys for page in pages)
    seen = [entry for page in pages for entry in entries_of(page)]
    assert seen == model(KEYS, delimiter=delimiter)


@pytest.mark.parametrize("listing", [pages_v1, pages_v2])
@pytest.mark.parametrize("prefix", ["a", "a/", "a/b", "b/", "d.e", "f\x01", "z/", "zz", "no", "é"])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_prefixes_agree_with_the_model(s3, tree, listing, prefix, delimiter):
    pages = listing(s3, tree, Prefix=prefix, Delimiter=delimiter, MaxKeys=3)
    seen = [entry for page in pages for entry in entries_of(page)]
    assert seen == model(KEYS, prefix, delimiter)


@pytest.mark.parametrize(
    ("after", "delimiter"),
    [(after, "") for after in ("", "a", "a/", "a/b/", "a/zzz", "f", "z/", "~", "\U0010ffff")]
    # A place inside a common prefix is left out: Amazon does not say whether the prefix is then listed again.
    + [(after, "/") for after in ("", "a", "a/", "a0", "f", "z/", "~", "\U0010ffff")],
)
def test_start_after_and_marker_need_not_exist(s3, tree, after, delimiter):
    wanted = model(KEYS, delimiter=delimiter, after=after)
    assert entries_of(s3.list_objects_v2(Bucket=tree, StartAfter=after, Delimiter=delimiter)) == wanted
    page = s3.list_objects(Bucket=tree, Marker=after, Delimiter=delimiter)
    assert page.get("Marker", "") == after
    assert entries_of(page) == wanted


def test_random_trees_agree_with_the_model(s3):
    """Seeded, so that a failure repeats."""
    dice = random.Random(20260501)
    alphabet = "ab/\x02~é"
    for _ in range(4):
        bucket = fresh_name()
        s3.create_bucket(Bucket=bucket)
        keys = {"".join(dice.choices(alphabet, k=dice.randint(1, 6))) for _ in range(60)}
        for key in keys:
            s3.put_object(Bucket=bucket, Key=key, Body=b"")
        for _ in range(25):
            prefix = "".join(dice.choices(alphabet, k=dice.randint(0, 2)))
            delimiter = dice.choice(["", "/", "a", "ab", "\x02", "é"])
            max_keys = dice.randint(1, 9)
            listing = dice.choice([pages_v1, pages_v2])
            pages = listing(s3, bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=max_keys)
            seen = [entry for page in pages for entry in entries_of(page)]
            assert seen == model(keys, prefix, delimiter), (sorted(keys), prefix, delimiter, max_keys, listing)


def test_entries_tell_size_time_etag_and_owner(s3, bucket):
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"12345")
    entry = s3.list_objects_v2(Bucket=bucket, FetchOwner=True)["Contents"][0]
    assert (entry["Size"], entry["ETag"], entry["StorageClass"]) == (5, put["ETag"], "STANDARD")
    assert entry["LastModified"] == s3.head_object(Bucket=bucket, Key="k")["LastModified"].replace(
        microsecond=entry["LastModified"].microsecond
    )
    assert entry["Owner"]["ID"] == s3.list_buckets()["Owner"]["ID"]
    assert "Owner" not in s3.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert "Owner" in s3.list_objects(Bucket=bucket)["Contents"][0]


def test_encoded_answers_encode_every_name(raw, s3, bucket):
    for key in ("a b/c", "a b/\x01", "x+y"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    query = "?delimiter=%2F&encoding-type=url&list-type=2&prefix=a%20"
    document = raw.request("GET", f"/{bucket}{query}").body.decode()
    assert "<EncodingType>url</EncodingType>" in document
    assert "<Prefix>a+</Prefix>" in document or "<Prefix>a%20</Prefix>" in document
    prefix = document.split("<CommonPrefixes><Prefix>")[1].split("<")[0]
    assert urllib.parse.unquote_plus(prefix) == "a b/"
    plain = raw.request("GET", f"/{bucket}?list-type=2")
    assert plain.status == 200
    assert plain.body.count(b"<Key>") == 3
    # XML 1.0 has no form for most control characters; as references they at least break no line and hide nothing.
    assert b"&#x1;" in plain.body or b"&#1;" in plain.body
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", plain.body)


def test_zero_keys_are_none_and_the_end(s3, tree):
    for page in (s3.list_objects(Bucket=tree, MaxKeys=0), s3.list_objects_v2(Bucket=tree, MaxKeys=0)):
        assert not page["IsTruncated"] and "Contents" not in page


def test_more_than_a_thousand_come_in_pages_of_a_thousand(raw, tree):
    answer = raw.request("GET", f"/{tree}?list-type=2&max-keys=100000")
    assert b"<MaxKeys>1000</MaxKeys>" in answer.body or b"<MaxKeys>100000</MaxKeys>" in answer.body
    assert answer.body.count(b"<Contents>") == len(KEYS)


@pytest.mark.parametrize("text", ["blah", "-1", "1.5", "99999999999999999999", "0x1"])
def test_max_keys_must_be_a_number(raw, tree, text):
    for version in ("", "list-type=2&"):
        answer = raw.request("GET", f"/{tree}?{version}max-keys={text}")
        assert (answer.status, answer.code) == (400, "InvalidArgument")


@pytest.mark.parametrize("token", ["forged", "%00%FF", "a" * 5000, "bm8gdG9rZW4="])
def test_a_forged_token_gives_no_server_error(raw, tree, token):
    answer = raw.request("GET", f"/{tree}?continuation-token={token}&list-type=2")
    assert answer.status in (200, 400), answer
    if answer.status == 400:
        assert answer.code in ("InvalidArgument", "InvalidURI")


def test_an_empty_parameter_is_an_absent_one(raw, tree):
    for query in ("?delimiter=&list-type=2&prefix=", "?list-type=2", "?delimiter&list-type=2&prefix"):
        answer = raw.request("GET", f"/{tree}{query}")
        assert answer.body.count(b"<Contents>") == len(KEYS), query


def test_the_token_wins_over_start_after(s3, tree):
    first = s3.list_objects_v2(Bucket=tree, MaxKeys=1)
    page = s3.list_objects_v2(Bucket=tree, StartAfter="z", ContinuationToken=first["NextContinuationToken"])
    assert page["Contents"][0]["Key"] == KEYS[1]


def test_a_list_follows_each_write_at_once(s3, bucket):
    for number in range(20):
        s3.put_object(Bucket=bucket, Key=f"{number:02}", Body=b"")
        assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == number + 1
    for number in range(20):
        s3.delete_object(Bucket=bucket, Key=f"{number:02}")
        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 19 - number


def test_a_missing_bucket_lists_nothing(s3):
    assert refusal(s3.list_objects, Bucket="no-such-bucket-x") == (404, "NoSuchBucket")
    assert refusal(s3.list_objects_v2, Bucket="no-such-bucket-x") == (404, "NoSuchBucket")
