"""HTTPS on the S3 port: real clients check the certificate, and a new one is taken without a restart.

Each authority is one that `ferrozone cluster init` makes; its node certificate is for 127.0.0.1.
"""

import socket
import ssl
import subprocess

import boto3
import botocore.client
import botocore.exceptions
import pytest

from harness import server as servers
from harness.clients import pattern
from harness.server import binary
from harness.waiting import wait_until


class Authority:
    def __init__(self, directory):
        out = directory / "cluster"
        words = ["cluster", "init", "--hosts", "127.0.0.1", "--tls", "true", "--out", str(out)]
        made = subprocess.run([binary(), *words], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        self.ca, self.certificate, self.key = (out / "127.0.0.1" / name for name in ("ca.pem", "node.pem", "node.key"))


@pytest.fixture
def authorities(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    return Authority(tmp_path / "one"), Authority(tmp_path / "other")


@pytest.fixture
def served(authorities, tmp_path, make_server):
    """A server with the first authority's certificate, and where it reads it from."""
    certificate, key = tmp_path / "s3.pem", tmp_path / "s3.key"
    certificate.write_bytes(authorities[0].certificate.read_bytes())
    key.touch(mode=0o600)
    key.write_bytes(authorities[0].key.read_bytes())
    server = make_server({"s3": {"certificate": str(certificate), "key": str(key)}}).start()
    assert server.endpoint.startswith("https://")
    return server, certificate, key


def client_of(server, ca):
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=servers.REGION,
        aws_access_key_id=servers.ROOT_ACCESS_KEY,
        aws_secret_access_key=servers.ROOT_SECRET_KEY,
        verify=str(ca),
        config=botocore.client.Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1, "mode": "standard"}
        ),
    )


def is_trusted(server, ca):
    """By a new connection."""
    host, port = server.endpoint.removeprefix("https://").rsplit(":", 1)
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            with context.wrap_socket(raw, server_hostname=host):
                return True
    except ssl.SSLCertVerificationError:
        return False


def test_objects_go_both_ways_and_another_authority_is_not_believed(served, authorities):
    server, _, _ = served
    s3 = client_of(server, authorities[0].ca)
    s3.create_bucket(Bucket="box")
    body = pattern(9 << 20)
    s3.put_object(Bucket="box", Key="long", Body=body)
    assert s3.get_object(Bucket="box", Key="long")["Body"].read() == body
    with pytest.raises(botocore.exceptions.SSLError):
        client_of(server, authorities[1].ca).list_buckets()
    server.stop()
    server.check_log()


def test_plain_http_on_the_port_is_no_way_in_and_stops_nobody(served, authorities):
    server, _, _ = served
    host, port = server.endpoint.removeprefix("https://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")
        raw.settimeout(30)
        assert b"200" not in raw.recv(4096)
    assert client_of(server, authorities[0].ca).list_buckets()["Buckets"] == []
    server.stop()


def test_a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not(served, authorities):
    server, certificate, key = served
    one, other = authorities
    # A client that is connected keeps its connection.
    before = client_of(server, one.ca)
    before.create_bucket(Bucket="box")
    key.write_bytes(other.key.read_bytes())
    certificate.write_bytes(other.certificate.read_bytes())
    wait_until("the new certificate", lambda: is_trusted(server, other.ca))
    assert not is_trusted(server, one.ca)
    client_of(server, other.ca).put_object(Bucket="box", Key="after", Body=b"x")
    # Half a file: the server goes on with what it has, and says so.
    certificate.write_bytes(one.certificate.read_bytes()[:100])
    wait_until("a word in the log", lambda: "certificate" in server.log())
    assert is_trusted(server, other.ca)
    assert client_of(server, other.ca).head_object(Bucket="box", Key="after")["ContentLength"] == 1
    server.stop()
