"""Servers, clients and buckets for the tests.

The session's server is shared by all tests of a worker; whoever kills, fills or damages one makes its own with
`make_server`. A bucket is fresh for each test and stays: the whole directory goes at the end.
"""

import os
import shutil

import pytest

from harness import cluster
from harness import server as servers
from harness.clients import client_of, fresh_name
from harness.raw import Raw


def pytest_collection_modifyitems(config, items):
    """Leaves out, by name, what asks for the sole process of a server."""
    if not servers.is_cluster():
        return
    left_out = [item for item in items if cluster.reason_for_one_process(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = servers.make(tmp_path_factory.mktemp("server")).start()
    yield server
    try:
        assert server.is_alive(), f"the server died:\n{server.log()[-3000:]}"
        server.stop()
        server.check_log()
    finally:
        server.end()
    shutil.rmtree(server.data)


@pytest.fixture
def make_server(tmp_path):
    """Makes servers of the test's own; none outlives it."""
    made = []

    def make(config=None, environment=None, directory=None):
        server = servers.make(directory or tmp_path / f"server-{len(made)}", config, environment)
        made.append(server)
        return server

    yield make
    for server in made:
        server.end()


@pytest.fixture(scope="session")
def s3(server):
    return client_of(server)


@pytest.fixture(scope="session")
def alt(server):
    """A second user, who owns other buckets."""
    return client_of(server, servers.ALT_ACCESS_KEY, servers.ALT_SECRET_KEY)


@pytest.fixture
def raw(server):
    return Raw(server.address)


@pytest.fixture
def bucket(s3):
    name = fresh_name()
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def client_environment(server, tmp_path):
    """The environment in which programs find the server and nothing of the machine's own settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": servers.ROOT_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.ROOT_SECRET_KEY,
        "AWS_DEFAULT_REGION": servers.REGION,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_MAX_ATTEMPTS": "1",
    }
