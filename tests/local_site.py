"""A real website on 127.0.0.1 for tests: paths in, replies out, and a log of what was asked."""

import gzip
import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """`pages[path]` is HTML text, (status, headers, body), or a function of the request that gives such a triple."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.pages: dict[str, object] = {}
        self.asked: list[str] = []  # paths, robots.txt left out
        self.statuses: list[int] = []  # of those
        self.requests: list[BaseHTTPRequestHandler] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer((host, port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.host = f"{host}:{self.port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(request.path, (404, {}, "no such page"))
        page = page(request) if isinstance(page, Callable) else page
        status, headers, body = (200, {}, page) if isinstance(page, str) else page
        body = body.encode() if isinstance(body, str) else body
        headers = {"Content-Type": "text/html"} | headers
        if status == 200 and request.path.endswith(".etag.html"):
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if request.headers.get("If-None-Match") == headers["ETag"]:
                status, body = 304, b""
        if request.path != "/robots.txt":
            self.asked.append(request.path)
            self.statuses.append(status)
        self.requests.append(request)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if status != 304:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def take_log(self) -> list[tuple[str, int]]:
        """What was asked since the last call, and how it was answered."""
        log = list(zip(self.asked, self.statuses, strict=True))
        self.asked.clear()
        self.statuses.clear()
        return log

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def zipped(body: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Encoding": "gzip"}, gzip.compress(body)
