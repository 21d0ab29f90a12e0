"""One URL in, one reply out, and no way into the network this machine sits in.

A host name is resolved once for each connection, all its addresses must be public, and the connection goes to one of
those very addresses; TLS still verifies the name. No redirects (each hop has to come back here), no proxies, no
cookies, no credentials. A reply is bounded in time, in bytes as sent and in bytes as decompressed.

Not covered: the machine's own public address, and private services that a public address forwards to.
"""

import ipaddress
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import OK, responses
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from rag.config import WebConfig
from rag.errors import ExtractionError
from rag.ingest.urls import canonical_url, split_host

Resolver = Callable[[str, int], list[str]]  # host, port -> addresses
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beside ipaddress.is_global, whose answers differ between versions of Python.
PRIVATE_RANGES = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24
192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
168.63.129.16/32
2001::/23 2001:db8::/32 2002::/16 3fff::/20
"""  # the single address is public in form, yet one large cloud's service inside; 2001:: and 2002:: hold IPv4 addresses
NOT_PUBLIC = [ipaddress.ip_network(network) for network in PRIVATE_RANGES.split()]
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Link-local holds the clouds' metadata services, as does fd00:ec2::254: naming a host does not allow them.
NEVER_BY_NAME = [ipaddress.ip_network(n) for n in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "0.0.0.0/8", "::")]

CONNECT_TIMEOUT_S = 10.0  # for one address, so that the next gets its turn
MAX_ERROR_BYTES = 64 * 2**10  # read of a reply that is no page, to keep its connection
GZIP = 31  # zlib's wbits for a gzip header


class FetchError(ExtractionError):
    """No page from this URL; the text is the reason. `is_temporary`: it may be there again tomorrow."""

    def __init__(self, message: str, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary


@dataclass(frozen=True)
class Reply:
    """`headers` have lower-case names; `body` is decompressed, and empty where it was not wanted."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        return f"{self.status} {responses.get(self.status, '')}".rstrip()


def is_public(address: Address) -> bool:
    """Whether an address is for everybody; an IPv4 address inside an IPv6 one is judged itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in NAT64:  # what IPv6-only networks call IPv4 addresses
            return is_public(ipaddress.IPv4Address(address.packed[-4:]))
        if address not in GLOBAL_UNICAST:
            return False
    listed = any(address in network for network in NOT_PUBLIC)
    return address.is_global and not (listed or address.is_multicast or address.is_reserved)


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host, in the system's order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class PublicClient:
    """One request at a time. `web.allow_private` names what may be reached although it is not public."""

    def __init__(self, config: WebConfig, resolve: Resolver = resolve_host, tls: ssl.SSLContext | None = None) -> None:
        self._config = config
        self._resolve = resolve
        entries = [entry.lower() for entry in config.allow_private]
        self._hosts = {entry for entry in entries if "/" not in entry}
        self._networks = [ipaddress.ip_network(entry) for entry in entries if "/" in entry]
        self._clock = _Clock()
        self._pool = httpcore2.ConnectionPool(tls, network_backend=_Backend(self.checked, self._clock))

    def close(self) -> None:
        self._pool.close()

    def checked(self, host: str, port: int) -> list[str]:
        """The addresses to connect to, having looked at each. FetchError where one of them is not public."""
        try:
            addresses = [ipaddress.ip_address(text) for text in self._resolve(host, port)]
        except (OSError, UnicodeError) as error:
            raise FetchError(f"{host}: no such host ({error})", is_temporary=True) from None
        except ValueError:
            raise FetchError(f"{host}: resolves to something that is no address") from None
        if not addresses:
            raise FetchError(f"{host}: no such host", is_temporary=True)
        name = f"[{host}]" if ":" in host else host
        for address in addresses:
            if not self._is_allowed(address, name, port):
                raise FetchError(
                    f"{name} is at {address}: expected a public address; if it may be read, put"
                    f" {name}:{port} in web.allow_private"
                )
        return [str(address) for address in addresses]

    def _is_allowed(self, address: Address, host: str, port: int) -> bool:
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        if is_public(address) or any(address in network for network in self._networks):
            return True
        named = host in self._hosts or f"{host}:{port}" in self._hosts
        return named and not (address.is_multicast or any(address in network for network in NEVER_BY_NAME))

    def get(
        self, url: str, headers: Mapping[str, str] | None = None, wanted: Callable[[str], bool] = lambda mime: True
    ) -> Reply:
        """The reply to one GET, whatever its status. `wanted` says by Content-Type whether a 200's body is read.

        FetchError where none comes, or a larger one than `web.max_bytes`; SourceError for a URL of no clear meaning.
        """
        url = canonical_url(url)
        parts, (host, port) = urlsplit(url), split_host(url)
        target = (parts.path + (f"?{parts.query}" if parts.query else "")).encode()
        sent = {"Host": parts.netloc, "User-Agent": self._config.user_agent, "Accept": "*/*", "Accept-Encoding": "gzip"}
        self._clock.start(self._config.timeout_s)
        try:
            # built from its parts: no second parser gets to read the host
            address = httpcore2.URL(scheme=parts.scheme, host=host, port=port, target=target)
            with self._pool.stream("GET", address, headers=_encoded(sent | dict(headers or {}))) as response:
                received = _headers(response.headers)
                body = self._body(response, received, wanted)
                return Reply(response.status, received, body)
        except httpcore2.TimeoutException:
            raise FetchError(f"no whole reply in {self._config.timeout_s:g} s", is_temporary=True) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise FetchError(f"no reply: {error or type(error).__name__}", is_temporary=True) from None

    def _body(self, response: httpcore2.Response, headers: Mapping[str, str], wanted: Callable[[str], bool]) -> bytes:
        if response.status != OK:
            _drain(response.iter_stream(), MAX_ERROR_BYTES)
            return b""
        if not wanted(headers.get("content-type", "")):
            return b""
        limit = self._config.max_bytes
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit)
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding in ("gzip", "x-gzip"):
            return gunzip(response.iter_stream(), limit)
        if coding not in ("identity", ""):
            raise FetchError(f"expected a plain or gzip body, found {coding[:40]!r}")
        return _read(response.iter_stream(), limit)


def gunzip(parts: Iterable[bytes], limit: int) -> bytes:
    """The decompressed whole, never holding much more than `limit` bytes. FetchError where it is more, or broken."""
    inflater, whole, num_read = zlib.decompressobj(GZIP), bytearray(), 0
    for part in parts:
        num_read += len(part)
        try:
            whole += inflater.decompress(part, limit - len(whole) + 1)
        except zlib.error as error:
            raise FetchError(f"broken gzip: {error}") from None
        if len(whole) > limit or num_read > limit:
            raise _too_large(limit)
    if not inflater.eof:
        raise FetchError("the compressed body ends early", is_temporary=True)
    return bytes(whole)


def _read(parts: Iterable[bytes], limit: int) -> bytes:
    whole = bytearray()
    for part in parts:
        whole += part
        if len(whole) > limit:
            raise _too_large(limit)
    return bytes(whole)


def _drain(parts: Iterable[bytes], limit: int) -> None:
    for part in parts:
        limit -= len(part)
        if limit < 0:
            return


def _too_large(limit: int) -> FetchError:
    return FetchError(f"expected at most {limit} bytes, found more; raise web.max_bytes")


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By lower-case name; repeated ones joined by a comma, except Location, of which the first counts."""
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name = name_bytes.decode("latin-1").lower()
        try:
            value = value_bytes.decode()
        except UnicodeDecodeError:
            value = value_bytes.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name != "location":
            headers[name] += f", {value}"
    return headers


@dataclass
class _Clock:
    """The deadline of the request in progress: a server that sends a byte now and then does not get around it."""

    ends: float = 0.0

    def start(self, timeout_s: float) -> None:
        self.ends = time.monotonic() + timeout_s

    def left(self) -> float:
        seconds = self.ends - time.monotonic()
        if seconds <= 0:
            raise httpcore2.ReadTimeout
        return seconds


class _Backend(httpcore2.NetworkBackend):
    """Opens connections to checked addresses only."""

    def __init__(self, checked: Resolver, clock: _Clock) -> None:
        self._checked, self._clock, self._system = checked, clock, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in self._checked(host, port):
            try:
                seconds = min(CONNECT_TIMEOUT_S, self._clock.left())
                return _Stream(self._system.connect_tcp(address, port, seconds), self._clock)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpcore2.NetworkStream):
    """A connection whose every step ends by the clock."""

    def __init__(self, stream: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._clock.left()), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
