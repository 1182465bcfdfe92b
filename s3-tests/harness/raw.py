"""HTTP over a bare socket: requests that no library would send, and answers seen byte by byte."""

import re
import socket
import xml.etree.ElementTree

from harness.sigv4 import Signer, sha256

TIMEOUT_S = 30


class Response:
    """One answer; `code` is that of an S3 error document, none if there is no such."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def code(self):
        match = re.search(rb"<Code>([^<]*)</Code>", self.body)
        return match[1].decode() if match else None

    @property
    def message(self):
        match = re.search(rb"<Message>([^<]*)</Message>", self.body)
        return match[1].decode() if match else None

    def header(self, name):
        return self.headers.get(name.lower())

    def xml(self):
        return xml.etree.ElementTree.fromstring(self.body)

    def __repr__(self):
        return f"Response({self.status}, {self.code}, {self.message}, {self.body[:300]!r})"


class Connection:
    """A connection on which several exchanges may follow one another."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)

    def _more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def is_closed_by_server(self):
        """True once the server has closed; waits for it."""
        try:
            while self._more():
                pass
        except TimeoutError:
            return False
        return True

    def read_head(self):
        """Status and headers of the next answer, interim ones included; none if the server closed instead."""
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                return None
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return status, headers

    def read_response(self, method="GET"):
        """The next final answer with its body; none if the server closed instead."""
        head = self.read_head()
        while head is not None and head[0] == 100:
            head = self.read_head()
        if head is None:
            return None
        status, headers = head
        if method == "HEAD" or status in (204, 304):
            return Response(status, headers, b"")
        if "chunked" in headers.get("transfer-encoding", ""):
            return Response(status, headers, self._read_chunked())
        if "content-length" not in headers:
            while self._more():
                pass
            body, self.buffer = self.buffer, b""
            return Response(status, headers, body)
        return Response(status, headers, self._read_exactly(int(headers["content-length"])))

    def _read_exactly(self, length):
        while len(self.buffer) < length:
            if not self._more():
                raise ConnectionError(f"the body broke off after {len(self.buffer)} of {length} bytes")
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return body

    def _read_chunked(self):
        body = b""
        while True:
            while b"\r\n" not in self.buffer:
                if not self._more():
                    raise ConnectionError("the chunked body broke off")
            size, self.buffer = self.buffer.split(b"\r\n", 1)
            length = int(size.split(b";")[0], 16)
            body += self._read_exactly(length)
            self._read_exactly(2)
            if length == 0:
                return body


def head_bytes(method, target, headers):
    """A request's head, exactly as given."""
    lines = [f"{method} {target} HTTP/1.1"] + [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"


def exchange(address, data, method="GET"):
    """Sends bytes on a new connection; the answer, or none if the server closed without one."""
    with Connection(address) as connection:
        try:
            connection.send(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The server refused early; its answer may still be there to read.
        return connection.read_response(method)


class Raw:
    """Signed requests to one server, path style, with every part open to change."""

    def __init__(self, address):
        self.address = address

    @property
    def host(self):
        return f"{self.address[0]}:{self.address[1]}"

    def signed(self, method, target, headers=(), body=b"", payload_hash=None, signer=None, length=True, host=None):
        """The headers of a signed request with `body`; Content-Length is added unless `length` is false."""
        signer = signer or Signer()
        headers = [("Host", host or self.host), *headers]
        if length:
            headers.append(("Content-Length", str(len(body))))
        return signer.headers(method, target, headers, payload_hash or sha256(body))

    def send(self, method, target, headers, body=b""):
        return exchange(self.address, head_bytes(method, target, headers) + body, method)

    def request(self, method, target, headers=(), body=b"", **rest):
        """Signs and sends."""
        return self.send(method, target, self.signed(method, target, headers, body, **rest), body)
