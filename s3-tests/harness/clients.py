"""boto3 clients of a server, names, and what a refusal looks like."""

import itertools
import uuid

import boto3
import botocore.client
import botocore.exceptions
import pytest

from harness import server as servers


def client_of(server, access_key=servers.ROOT_ACCESS_KEY, secret_key=servers.ROOT_SECRET_KEY, **config):
    """A boto3 client that never hides a failure behind a retry."""
    config.setdefault("s3", {"addressing_style": "path"})
    config.setdefault("signature_version", "s3v4")
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=servers.REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=botocore.client.Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
            **config,
        ),
    )


_numbers = itertools.count()


def fresh_name():
    return f"t{next(_numbers)}-{uuid.uuid4().hex[:12]}"


def refusal(call, *words, **arguments):
    """(status, code) of the error that a call must end in."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(*words, **arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def keys_of(s3, bucket, **arguments):
    """All keys, by pages."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, **arguments)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def body_of(s3, bucket, key, **arguments):
    return s3.get_object(Bucket=bucket, Key=key, **arguments)["Body"].read()


def pattern(length, seed=0):
    """Bytes that differ at every offset, so that a shifted or repeated answer is seen."""
    numbers = range(seed * 1_000_003, seed * 1_000_003 + length // 8 + 1)
    return b"".join(number.to_bytes(8, "big") for number in numbers)[:length]
