"""The way out: only to public addresses, only what was checked, only so much and so long. Real sockets throughout."""

import gzip
import ipaddress
import socket
import ssl
import threading
import time
import tracemalloc
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from local_site import Site, zipped

from rag.config import WebConfig, load_settings
from rag.errors import ConfigError, SourceError
from rag.ingest.public_net import FetchError, PublicClient, is_public, resolve_host

NAMES = {  # what a hostile or careless name server may say
    "ip6-localhost": ["::1"],
    "localtest.example": ["127.0.0.1"],
    "six.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "both.example": ["93.184.216.34", "127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "none.example": [],
    "scoped.example": ["fe80::1%1"],
}


def resolve(host: str, port: int) -> list[str]:
    """The system's answer for `localhost` and for addresses, whose spelling it may understand better than we do."""
    return NAMES[host] if host in NAMES else resolve_host(host, port)


@pytest.fixture
def listener():
    """A socket on every address of this machine that nobody must reach."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
        server.setblocking(False)
        yield server


def num_connections(server: socket.socket) -> int:
    num = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            num += 1
    return num


LOOPBACK_HOSTS = """
127.0.0.1 127.0.0.2 127.255.255.254 2130706433 0x7f000001 0x7F.0.0.1 0x7f.1 0177.0.0.1 017700000001 127.1 127.0.1
127.000.000.001 00127.0.0.1 0x7f.0x0.0x0.0x1 127.0.0.1. 0 0.0.0.0 0x0 00 0.0 localhost LOCALHOST localhost. LocalHost
ip6-localhost [::1] [0:0:0:0:0:0:0:1] [0000::0001] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:7f00:0001]
[::127.0.0.1] [::7f00:1] [64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::127.0.0.1] [2002:7f00:1::]
[2001:0:7f00:1::] [::1%25lo] [::1%lo] [fe80::1%25eth0] 127%2e0%2e0%2e1 %31%32%37.0.0.1 %6cocalhost
localtest.example six.example mapped.example both.example scoped.example none.example
"""
OTHER_PRIVATE_HOSTS = """
10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.254 192.168.1.1 192.0.0.192 169.254.169.254 0xa9fea9fe 2852039166
0251.0376.0251.0376 [::ffff:169.254.169.254] [fd00:ec2::254] [fe80::1] [fc00::1] [fec0::1] 100.64.0.1 100.100.100.200
168.63.129.16 198.18.0.1 192.0.2.1 203.0.113.9 224.0.0.1 239.255.255.250 255.255.255.255 240.0.0.1 [ff02::1]
[2001:db8::1] [3fff::1] [2002:a00:1::1] [64:ff9b::10.0.0.1] [2001:20::1] [5f00::1] [100::1] metadata.example
"""
FULL_WIDTH = [
    "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021",
    "127\uff0e0\uff0e0\uff0e1",
    "\u2460\u2461\u2466.0.0.1",
    "\uff4cocalhost",
    "\uff10x7f.1",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
    "local\u00adhost",
    "xn--127-.0.0.1",
]
TRICKS = [
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@example.com/",
    "http://example.com%40127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http:\\\\127.0.0.1:{port}/",
    "http:/\\127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.\n0.1:{port}/",
    "http://127.0.0.1\r\n:{port}/",
    "http://\x00127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.com/",
    "http://127.0.0.1:{port}?@example.com/",
    "http://127.0.0.1 :{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "file://127.0.0.1/etc/passwd",
    "//127.0.0.1:{port}/",
]
SPELLINGS = [
    f"http://{host}:{{port}}/" for host in LOOPBACK_HOSTS.split() + OTHER_PRIVATE_HOSTS.split() + FULL_WIDTH
] + TRICKS


def test_no_spelling_of_a_private_address_is_ever_connected_to(listener):
    port = listener.getsockname()[1]
    assert len(SPELLINGS) == len(set(SPELLINGS)) > 100
    not_refused = []
    with closing(PublicClient(WebConfig(timeout_s=5), resolve)) as client:
        for spelling in SPELLINGS:
            with suppress(FetchError, SourceError):
                client.get(spelling.format(port=port))
                not_refused.append(spelling)
    assert not_refused == []
    assert num_connections(listener) == 0
    socket.create_connection(("127.0.0.1", port)).close()  # and it would have counted
    assert num_connections(listener) == 1


def test_the_system_s_own_names_for_this_machine_are_refused_too(listener):
    port = listener.getsockname()[1]
    with closing(PublicClient(WebConfig())) as client:
        for host in ("localhost", "LOCALHOST.", "127.0.0.1", "[::1]"):
            with pytest.raises(FetchError, match=r"expected a public address; .* put .*:\d+ in web.allow_private"):
                client.get(f"http://{host}:{port}/")
    assert num_connections(listener) == 0


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450::1"]
    + ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_name_with_one_private_address_among_public_ones_is_refused():
    with (
        closing(PublicClient(WebConfig(), resolve)) as client,
        pytest.raises(FetchError, match="both.example is at 127.0.0.1: expected a public address"),
    ):
        client.checked("both.example", 80)


@contextmanager
def served(host="127.0.0.1", port=0):
    site = Site(host, port)
    try:
        yield site
    finally:
        site.close()


def test_what_is_named_is_allowed_and_nothing_else(listener):
    with served() as site:
        site.pages["/"] = "<p>inside"
        other = listener.getsockname()[1]
        for entry in (site.host, "127.0.0.1", "127.0.0.0/8", f"wiki.internal:{site.port}", "WIKI.internal"):
            config = WebConfig(allow_private=(entry,))
            host = "127.0.0.1" if entry[0] == "1" else "wiki.internal"
            with closing(PublicClient(config, lambda name, port: ["127.0.0.1"])) as client:
                assert client.get(f"http://{host}:{site.port}/").body == b"<p>inside"
        with closing(PublicClient(WebConfig(allow_private=(site.host,)), lambda name, port: ["127.0.0.1"])) as client:
            for url in (f"http://127.0.0.1:{other}/", f"http://127.0.0.2:{site.port}/", f"http://a.b:{site.port}/"):
                with pytest.raises(FetchError, match="expected a public address"):
                    client.get(url)
    assert num_connections(listener) == 0


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "fe80::1"])
def test_a_name_that_is_allowed_does_not_lead_to_metadata_services(address):
    named, whole = WebConfig(allow_private=("wiki.internal",)), WebConfig(allow_private=("::/0", "0.0.0.0/0"))
    with (
        closing(PublicClient(named, lambda host, port: [address])) as client,
        pytest.raises(FetchError, match="expected a public address"),
    ):
        client.checked("wiki.internal", 80)
    with closing(PublicClient(whole, lambda host, port: [address])) as client:
        assert client.checked("wiki.internal", 80) == [address]


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "http://wiki", "a b", "[::1", "wiki:x", ""])
def test_an_entry_that_names_no_host_is_a_config_error(entry):
    with pytest.raises(ConfigError, match="web.allow_private"):
        load_settings(web={"allow_private": (entry,)})


def test_a_name_is_resolved_once_for_a_connection_and_what_was_checked_is_connected():
    """DNS rebinding: the name is fine when looked at and 127.0.0.1 ever after."""
    with served("127.0.0.2") as good, served("127.0.0.1", good.port) as private:
        answers, asked = [["127.0.0.2"]], []

        def rebinding(host, port):
            asked.append(host)
            return answers.pop(0) if answers else ["127.0.0.1"]

        good.pages["/"] = private.pages["/"] = "<p>page"
        good.pages["/last"] = lambda request: (200, {"Connection": "close"}, "<p>bye")
        config = WebConfig(allow_private=("127.0.0.2/32",))
        with closing(PublicClient(config, rebinding)) as client:
            url = f"http://rebinding.example:{good.port}/"
            assert client.get(url).body == client.get(url).body == b"<p>page"
            assert asked == ["rebinding.example"]
            assert client.get(f"{url}last").body == b"<p>bye"
            with pytest.raises(FetchError, match="rebinding.example is at 127.0.0.1"):
                client.get(url)
        assert len(asked) == 2
        assert [r.headers["Host"] for r in good.requests] == [f"rebinding.example:{good.port}"] * 3
        assert private.requests == []


def test_the_next_address_is_tried_when_one_does_not_answer():
    with served("127.0.0.2") as site:
        site.pages["/"] = "<p>page"
        config = WebConfig(allow_private=("127.0.0.0/8",))
        with closing(PublicClient(config, lambda host, port: ["127.0.0.3", "127.0.0.2"])) as client:
            assert client.get(f"http://d.example:{site.port}/").body == b"<p>page"


def test_a_redirect_is_returned_and_not_followed():
    with served() as site:
        site.pages["/"] = (302, {"Location": "/b"}, "moved")
        with closing(PublicClient(WebConfig(allow_private=(site.host,)))) as client:
            reply = client.get(site.url)
        assert (reply.reason, reply.headers["location"], reply.body) == ("302 Found", "/b", b"")
        assert site.asked == ["/"]


def test_proxies_and_passwords_of_the_environment_are_not_used(listener, monkeypatch, tmp_path):
    with served() as site:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        site.pages["/"] = (200, {"Set-Cookie": "a=b"}, "<p>page")
        with closing(PublicClient(WebConfig(allow_private=(site.host,)))) as client:
            assert client.get(site.url).body == client.get(site.url).body == b"<p>page"
        sent = {name.lower() for request in site.requests for name in request.headers}
        assert sent == {"host", "user-agent", "accept", "accept-encoding"}
    assert num_connections(listener) == 0


# Bounds


def raw_server(talk):
    """`talk(connection)` for each connection, after the request was read."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    talk(connection)

    threading.Thread(target=serve, daemon=True).start()
    return server


def fetch_raw(talk, **settings):
    with closing(raw_server(talk)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        with closing(PublicClient(WebConfig(allow_private=(host,), **settings))) as client:
            return client.get(f"http://{host}/")


def slowly(head):
    def talk(connection):
        connection.sendall(head)
        for _ in range(100):
            time.sleep(0.1)
            connection.sendall(b"x")

    return talk


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_sends_a_byte_now_and_then_does_not_outlast_the_deadline(head):
    started = time.monotonic()
    with pytest.raises(FetchError, match="no whole reply in 0.5 s") as caught:
        fetch_raw(slowly(head), timeout_s=0.5)
    assert caught.value.is_temporary and time.monotonic() - started < 5


def test_a_bomb_is_cut_off_while_it_is_decompressed():
    bomb = gzip.compress(bytes(64 * 2**20))
    with served() as site:
        site.pages["/"] = (200, {"Content-Encoding": "gzip"}, bomb)
        with closing(PublicClient(WebConfig(allow_private=(site.host,), max_bytes=100_000))) as client:
            tracemalloc.start()
            with pytest.raises(FetchError, match="expected at most 100000 bytes, found more; raise web.max_bytes"):
                client.get(site.url)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 2 * 2**20


def test_a_body_is_bounded_whether_announced_or_not():
    for head in (b"Content-Length: 2000\r\n", b"", b"Content-Length: 99999999999999\r\n"):
        with pytest.raises(FetchError, match="expected at most 1024 bytes"):
            fetch_raw(
                lambda c, head=head: c.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + b"x" * 2000), max_bytes=1024
            )
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nabcde\r\n" * 10_000
    with pytest.raises(FetchError, match="expected at most 1024 bytes"):
        fetch_raw(lambda c: c.sendall(endless), max_bytes=1024)


def test_endless_headers_are_cut_off():
    def talk(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X-Header: " + b"a" * 1000 + b"\r\n")

    with pytest.raises(FetchError, match="no reply"):
        fetch_raw(talk, timeout_s=5)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "no reply: Server disconnected"),
        (b"not HTTP at all\r\n\r\n", "no reply: illegal status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "no reply: peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nabc", "expected a plain or gzip body, found 'br'"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\nabc", "expected a plain or gzip body"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc", "broken gzip"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"a" * 99)[:-9], "body ends early"),
    ],
)
def test_a_broken_reply_has_a_reason(reply, reason):
    with pytest.raises(FetchError, match=reason):
        fetch_raw(lambda connection: connection.sendall(reply))


def test_a_port_where_nobody_listens_is_a_temporary_failure():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        closing(PublicClient(WebConfig(allow_private=("127.0.0.1",)))) as client,
        pytest.raises(FetchError, match="refused") as caught,
    ):
        client.get(f"http://127.0.0.1:{port}/")
    assert caught.value.is_temporary


def test_a_compressed_body_is_read_and_an_unwanted_one_is_not():
    with served() as site:
        site.pages["/"] = zipped(b"<p>page")
        site.pages["/film"] = (200, {"Content-Type": "video/mp4"}, bytes(10**6))
        with closing(PublicClient(WebConfig(allow_private=(site.host,), max_bytes=1024))) as client:
            assert client.get(site.url).body == b"<p>page"
            assert client.get(f"{site.url}/film", wanted=lambda kind: kind != "video/mp4").body == b""


# TLS


def certificate(folder, name):
    """A self-signed certificate for `name`; (path of certificate and key, context that trusts it)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(signed + secret)
    return path, ssl.create_default_context(cadata=signed.decode())


def test_tls_verifies_the_name_although_the_address_was_looked_up_before(tmp_path):
    pem, trusting = certificate(tmp_path, "docs.example")
    context, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(pem)
    context.sni_callback = lambda connection, name, _: asked.append(name)
    with served() as site:
        site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
        site.pages["/"] = "<p>page"
        config = WebConfig(allow_private=("127.0.0.1/32",))
        with closing(PublicClient(config, lambda host, port: ["127.0.0.1"], trusting)) as client:
            assert client.get(f"https://docs.example:{site.port}/").body == b"<p>page"
            with pytest.raises(FetchError, match="certificate verify failed: Hostname mismatch"):
                client.get(f"https://other.example:{site.port}/")
        with (
            closing(PublicClient(config, lambda host, port: ["127.0.0.1"])) as client,
            pytest.raises(FetchError, match="certificate verify failed: self-signed"),
        ):
            client.get(f"https://docs.example:{site.port}/")
    assert asked == ["docs.example", "other.example", "docs.example"]
