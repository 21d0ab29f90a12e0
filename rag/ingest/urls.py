"""One spelling for each web address: URLs as people and pages write them in, canonical ones out.

Whatever software reads in more than one way (user names, backslashes, control characters, numbers dressed up as
host names) is refused. Looks nothing up: whether a host is public is for rag.ingest.public_net to say.
"""

import ipaddress
import re
import socket
from urllib.parse import quote, urljoin, urlsplit

from rag.errors import SourceError

MAX_URL = 2000  # characters; calendars and session ids grow without end
DEFAULT_PORT = {"http": 80, "https": 443}
PAGES = ".html .htm .xhtml .shtml .php .asp .aspx .jsp .md .markdown .rst .txt .text .pdf"
PAGE_SUFFIXES = tuple(PAGES.split())

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{0,5}))?")
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a host that ends in one is an IPv4 address to every browser
AT = re.compile("[@\ufe6b\uff20]")  # the last two are an @ to software that normalises first
ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
IN_PATH, IN_QUERY = "/:@!$&'()*+,;=%", "/?:@!$&'()*+,;=%"


def canonical_url(url: str) -> str:
    """Scheme and host in lower case, no default port, no fragment, dots resolved, one percent-encoding.

    SourceError where `url` is not an http(s) URL that can be read in one way only; user names are not repeated in it.
    """
    url = url.strip(" \t\r\n\f")
    if len(url) > MAX_URL:
        raise _refused(url, f"at most {MAX_URL} characters", str(len(url)))
    if CONTROL.search(url):
        raise _refused(url, "printable characters", "control characters")
    if "\\" in re.split("[?#]", url, maxsplit=1)[0]:
        raise _refused(url, "slashes", "a backslash, which software reads in two ways")
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may hold a password
        raise _refused(url, "a host name", "one that cannot be read") from None
    if parts.scheme not in DEFAULT_PORT or not parts.netloc:
        raise _refused(url, "http:// or https:// and a host", "neither" if parts.netloc else "no host")
    path = _without_dots(_escaped(parts.path, IN_PATH)) if parts.path else "/"
    query = f"?{_escaped(parts.query, IN_QUERY)}" if parts.query else ""
    canonical = f"{parts.scheme}://{_authority(url, parts.scheme, parts.netloc)}{path}{query}"
    if len(canonical) > MAX_URL:  # escaping makes up to twelve characters of one
        raise _refused(url, f"at most {MAX_URL} characters when escaped", str(len(canonical)))
    return canonical


def join_url(base: str, href: str) -> str | None:
    """What a link on the page `base` (canonical) points at, canonical; None where that is no web page."""
    href = re.sub("[\t\r\n]", "", href.strip(" \t\r\n\f"))  # line ends and tabs inside it, as browsers do
    if len(href) > MAX_URL:  # before the standard library normalises its host, in quadratic time
        return None
    try:
        return canonical_url(urljoin(base, href))
    except (SourceError, ValueError):
        return None


def origin_of(url: str) -> str:
    """`https://host:port` of a canonical URL: what "the same site" means."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?]', rest, maxsplit=1)[0]}"


def folder_of(url: str) -> str:
    """The URL, ending in "/", below which a crawl from `url` (canonical) stays.

    /a/index.html -> /a/, because that is a page; /en/latest -> /en/latest/, because that is a folder whose slash was
    left out. The narrower reading is the safe one: what is listed below it may later be pruned there.
    """
    page = url.partition("?")[0]
    above, _, last = page.rpartition("/")
    return f"{above}/" if not last or last.lower().endswith(PAGE_SUFFIXES) else f"{page}/"


def is_below(url: str, start: str) -> bool:
    """Whether a crawl from `start` would keep the page `url`: same site, same folder or deeper. Both canonical."""
    folder, page = folder_of(start), url.partition("?")[0]
    return page.startswith(folder) or f"{page}/" == folder


def split_host(url: str) -> tuple[str, int]:
    """Host (IPv6 without brackets) and port of a canonical URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or DEFAULT_PORT[parts.scheme]


def shown(url: str) -> str:
    """`url` for a message: no user name or password, printable, not long."""
    text = AT.split(url)[-1]
    text = f"...@{text}" if len(text) < len(url) else text
    return "".join(char if char.isprintable() else "?" for char in text[:200])


def shown_target(url: str) -> str:
    """`url` for a message about where a site leads: as `shown`, without query and fragment, which may be a token."""
    place, *more = re.split("[?#]", shown(url), maxsplit=1)
    return f"{place}?..." if more else place


def _refused(url: str, expected: str, found: str) -> SourceError:
    return SourceError(f"{shown(url)}: expected {expected}, found {found}; write the URL in its plain form")


def _authority(url: str, scheme: str, netloc: str) -> str:
    if "@" in netloc:
        raise _refused(url, "a URL without user name or password", "an @ before the host")
    match = AUTHORITY.fullmatch(netloc)
    if not match:
        raise _refused(url, "a host and perhaps a port", "something else")
    port = int(match[2]) if match[2] else DEFAULT_PORT[scheme]
    if not 0 < port < 65536:
        raise _refused(url, "a port from 1 to 65535", str(port))
    host = _ipv6(url, match[1]) if match[1].startswith("[") else _host_name(url, match[1])
    return host if port == DEFAULT_PORT[scheme] else f"{host}:{port}"


def _ipv6(url: str, host: str) -> str:
    try:
        packed = ipaddress.IPv6Address(host[1:-1]).packed
    except ValueError:
        raise _refused(url, "an IPv6 address in brackets", "something else") from None
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]"  # str() of it differs between versions of Python


def _host_name(url: str, name: str) -> str:
    name = name.lower() if name.isascii() else _to_ascii(url, name)
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise _refused(url, "a host name of letters, digits and hyphens", "something else")
    if NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise _refused(url, "an IPv4 address as four plain decimal numbers", "another spelling") from None
    return name


def _to_ascii(url: str, name: str) -> str:
    import idna

    try:  # UTS 46 first, as browsers do: full-width digits and dots become the plain ones
        return idna.encode(name, uts46=True, std3_rules=True).decode()
    except UnicodeError:
        raise _refused(url, "a host name that can be looked up", "characters no host name may have") from None


def _escaped(text: str, safe: str) -> str:
    """Escaped only what must be, with capital digits; a lone % is itself escaped."""
    return quote(ESCAPE.sub(_one_escape, text), safe=safe)


def _one_escape(match: re.Match[str]) -> str:
    if not match[1]:
        return "%25"
    char = chr(int(match[1], 16))
    return char if char in UNRESERVED else f"%{match[1].upper()}"


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
