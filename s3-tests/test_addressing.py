"""Virtual-host style, the Host header, and the operators' port."""

import urllib.error
import urllib.request

import pytest

from harness.clients import body_of
from harness.raw import exchange, head_bytes
from harness.server import DOMAIN


@pytest.mark.parametrize("domain", [DOMAIN, f"{DOMAIN}:9999", "localhost", "LOCALHOST"])
def test_the_host_names_the_bucket(raw, s3, bucket, domain):
    host = f"{bucket}.{domain}"
    put = raw.request("PUT", "/a/k", [], b"hello", host=host)
    assert put.status == 200, put
    assert body_of(s3, bucket, "a/k") == b"hello"
    assert raw.request("GET", "/a/k", host=host).body == b"hello"
    assert b"<Key>a/k</Key>" in raw.request("GET", "/?list-type=2", host=host).body


def test_a_bucket_with_dots(raw, s3, bucket):
    dotted = f"{bucket}.with.dots"
    assert raw.request("PUT", "/", host=f"{dotted}.{DOMAIN}").status == 200
    assert dotted in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]


@pytest.mark.parametrize("host", ["unknown.example", "127.0.0.1", "[::1]:9000", DOMAIN])
def test_other_hosts_are_path_style(raw, bucket, host):
    answer = raw.request("GET", f"/{bucket}?list-type=2", host=host)
    assert answer.status == 200, answer


def test_a_missing_or_double_host_is_refused(raw, bucket):
    headers = raw.signed("GET", f"/{bucket}")
    without = [(name, value) for name, value in headers if name != "Host"]
    assert exchange(raw.address, head_bytes("GET", f"/{bucket}", without)).status == 400
    twice = [("Host", raw.host), *headers]
    assert exchange(raw.address, head_bytes("GET", f"/{bucket}", twice)).status == 400


def test_operators_port_answers_health_and_metrics(server):
    for path in ("/healthz/live", "/healthz/ready"):
        with urllib.request.urlopen(server.admin + path) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(server.admin + "/metrics") as answer:
        assert b"# TYPE" in answer.read()


def test_metrics_are_not_on_the_s3_port(raw):
    for path in ("/metrics", "/healthz/ready"):
        answer = exchange(raw.address, head_bytes("GET", path, [("Host", raw.host)]))
        assert answer.status in (403, 404) and b"# TYPE" not in answer.body
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{raw.host}/metrics")
