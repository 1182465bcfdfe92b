"""First start, second start, kill and restart, shutdown, and configurations that cannot be used."""

import concurrent.futures
import json
import os
import pathlib
import stat
import subprocess

from harness.clients import body_of, client_of, keys_of, pattern
from harness.raw import Connection, Raw, head_bytes
from harness.server import ROOT_SECRET_KEY, SMALL_SIZES, binary
from harness.waiting import wait_until


def settings(server, form="json"):
    answer = subprocess.run(
        [binary(), "env", "--format", form, "--data-dir", str(server.data)], capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout) if form == "json" else answer.stdout


def test_credentials_are_generated_told_once_and_kept(make_server):
    server = make_server(environment={"FERROZONE_ROOT_USER": "", "FERROZONE_ROOT_PASSWORD": ""})
    server.environment = {}
    server.start()
    given = settings(server)
    assert given["endpoint"] == server.endpoint and given["region"]
    assert given["secret_key"] in server.out_path.read_text(), "the first start tells the secret"
    assert given["secret_key"] not in server.log()
    client_of(server, given["access_key"], given["secret_key"]).create_bucket(Bucket="demo")
    holders = [path for path in server.data.iterdir() if path.is_file() and given["secret_key"] in path.read_text("latin-1")]
    assert holders and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holders)
    server.stop()
    server.out_path.write_text("")
    server.start()
    assert settings(server)["secret_key"] == given["secret_key"]
    assert given["secret_key"] not in server.out_path.read_text(), "a later start does not"
    client_of(server, given["access_key"], given["secret_key"]).head_bucket(Bucket="demo")
    assert settings(server, "sh").count("export ") >= 3
    server.stop()


def test_buckets_are_made_at_start(make_server):
    server = make_server(environment={"FERROZONE_BUCKETS": "one,two"}).start()
    names = [entry["Name"] for entry in client_of(server).list_buckets()["Buckets"]]
    assert names == ["one", "two"]
    server.stop()
    server.check_log()


def test_all_is_there_after_a_kill(make_server):
    server = make_server(SMALL_SIZES).start()
    s3 = client_of(server)
    s3.create_bucket(Bucket="box")
    bodies = {f"k{number:03}": pattern(number * 977, seed=number) for number in range(60)}
    for key, body in bodies.items():
        s3.put_object(Bucket="box", Key=key, Body=body, Metadata={"k": key})
    upload = s3.create_multipart_upload(Bucket="box", Key="multi")["UploadId"]
    part = s3.upload_part(Bucket="box", Key="multi", UploadId=upload, PartNumber=1, Body=pattern(5 << 20))
    for _ in range(3):
        server.kill()
        server.start()
    s3 = client_of(server)
    assert keys_of(s3, "box") == sorted(bodies)
    for key, body in bodies.items():
        got = s3.get_object(Bucket="box", Key=key)
        assert (got["Body"].read(), got["Metadata"]) == (body, {"k": key})
    last = s3.upload_part(Bucket="box", Key="multi", UploadId=upload, PartNumber=2, Body=b"tail")
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}, {"PartNumber": 2, "ETag": last["ETag"]}]
    s3.complete_multipart_upload(Bucket="box", Key="multi", UploadId=upload, MultipartUpload={"Parts": parts})
    assert body_of(s3, "box", "multi") == pattern(5 << 20) + b"tail"
    server.stop()
    server.check_log()


def test_a_kill_under_load_loses_nothing_acknowledged(make_server):
    server = make_server(SMALL_SIZES).start()
    s3 = client_of(server)
    s3.create_bucket(Bucket="box")
    acknowledged = []

    def put(number):
        key = f"{number:05}"
        try:
            s3.put_object(Bucket="box", Key=key, Body=pattern(5000 + number, seed=number))
        except Exception:
            return
        acknowledged.append(number)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number in range(4000):
            pool.submit(put, number)
        wait_until("some writes", lambda: len(acknowledged) >= 100)
        server.kill()
        pool.shutdown(cancel_futures=True)
    server.start()
    s3 = client_of(server)
    for number in acknowledged:
        assert body_of(s3, "box", f"{number:05}") == pattern(5000 + number, seed=number)
    for key in keys_of(s3, "box"):
        assert body_of(s3, "box", key) == pattern(5000 + int(key), seed=int(key)), "whole or not at all"
    server.stop()


def test_shutdown_finishes_what_runs(make_server):
    server = make_server().start()
    s3 = client_of(server)
    s3.create_bucket(Bucket="box")
    body = pattern(100_000)
    raw = Raw(server.address)
    with Connection(server.address) as connection:
        headers = [*raw.signed("PUT", "/box/k", [], body), ("Expect", "100-continue")]
        connection.send(head_bytes("PUT", "/box/k", headers))
        # Only a request that the server has begun is one that it must finish.
        assert connection.read_head()[0] == 100
        connection.send(body[:50_000])
        server.process.terminate()

        def refuses():
            try:
                Connection(server.address).socket.close()
                return False
            except OSError:
                return True

        wait_until("the listener to close", refuses)
        connection.send(body[50_000:])
        assert connection.read_response().status == 200
    assert server.process.wait(40) == 0
    server.start()
    assert body_of(client_of(server), "box", "k") == body
    server.stop()
    server.check_log()


def test_a_stalled_client_does_not_hold_up_shutdown(make_server):
    server = make_server({"s3": {"shutdown_deadline": "500ms"}}).start()
    client_of(server).create_bucket(Bucket="box")
    raw = Raw(server.address)
    with Connection(server.address) as connection:
        connection.send(head_bytes("PUT", "/box/k", raw.signed("PUT", "/box/k", [], b"x" * 1000)) + b"x")
        server.stop()


def run(server, *words, text=None):
    config = server.directory / "other.toml"
    if text is not None:
        config.write_text(text)
        words = (*words, "--config", str(config))
    addresses = ["--s3-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FERROZONE_")}
    return subprocess.run(
        [binary(), "server", str(server.data), *addresses, *words],
        capture_output=True, text=True, timeout=30, env=environment,
    )


def test_an_unknown_key_names_the_nearest(make_server):
    outcome = run(make_server(), text='[s3]\nadress = "127.0.0.1:0"\n')
    assert outcome.returncode == 78
    assert "adress" in outcome.stderr and "address" in outcome.stderr


def test_a_wrong_value_is_refused(make_server):
    for text in ('[om]\ndelete_grace = "soon"\n', "[s3\n", '[s3]\naddress = "nowhere"\n'):
        outcome = run(make_server(), text=text)
        assert outcome.returncode != 0 and outcome.stderr.strip(), text
        assert "panicked" not in outcome.stderr


def test_two_servers_on_one_directory_are_refused(make_server):
    server = make_server().start()
    outcome = run(server)
    assert outcome.returncode not in (0, 101)
    assert "panicked" not in outcome.stderr and outcome.stderr.strip()
    assert client_of(server).list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    server.stop()


def test_a_directory_that_cannot_be_made_is_refused(make_server):
    server = make_server()
    pathlib.Path(server.data).write_text("a file stands here")
    outcome = run(server)
    assert outcome.returncode == 78, outcome
    assert "panicked" not in outcome.stderr


def test_secrets_are_no_part_of_the_log(make_server):
    server = make_server({"log": "trace"}).start()
    client_of(server).create_bucket(Bucket="box")
    client_of(server).put_object(Bucket="box", Key="k", Body=b"x")
    client_of(server).generate_presigned_url("get_object", Params={"Bucket": "box", "Key": "k"})
    server.stop()
    assert ROOT_SECRET_KEY not in server.log()


def test_a_log_that_cannot_be_written_stops_nothing(make_server):
    server = make_server(environment={"RUST_LOG": "debug"})
    # As on a full disk: every write fails.
    server.log_path = server.out_path = pathlib.Path("/dev/full")
    assert server.launch_and_see(), "the server ended at its start"
    s3 = client_of(server)
    s3.create_bucket(Bucket="box")
    s3.put_object(Bucket="box", Key="k", Body=b"kept")
    assert body_of(s3, "box", "k") == b"kept"
    server.kill()
