"""What the user calls a Git repository in, its parts and its one name out. Asks nobody whether it is there.

git+https://host/org/repo[@branch, tag or commit][#subdirectory=docs]    also git+http, git+ssh, git+file
"""

import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from rag.errors import SourceError

PORTS = {"https": ":443", "http": ":80", "ssh": ":22", "file": ""}
FORM = "git+https://host/org/repo[@ref][#subdirectory=docs], an @ in a path as %40"
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
REF = re.compile(r"(?![-/.])(?!.*(\.\.|//|@\{))[^\x00-\x20\x7f~^:?*\[\\]+(?<![/.])")
# where a reader can open a file of a repository
PAGE = {
    "github.com": "https://github.com/{repo}/blob/{commit}/{path}",
    "gitlab.com": "https://gitlab.com/{repo}/-/blob/{commit}/{path}",
    "codeberg.org": "https://codeberg.org/{repo}/src/commit/{commit}/{path}",
    "bitbucket.org": "https://bitbucket.org/{repo}/src/{commit}/{path}",
}


@dataclass(frozen=True)
class Repository:
    """What the user named. Neither `url` nor `origin` holds a password."""

    origin: str  # one name whatever the ref: a new commit replaces documents, it does not duplicate them
    url: str  # for git
    page: str  # of a file at a commit, to be filled in; "" where the host has none
    ref: str = ""
    folder: str = ""
    login: tuple[str, str] | None = field(default=None, repr=False)


def parse_repository(source: str) -> Repository:
    """SourceError for what is not of the form above; a password is never repeated in it."""
    scheme, _, rest = source.removeprefix("git+").partition("://")
    scheme = scheme.lower()
    shown = f"git+{scheme}://..."
    _expect(scheme in PORTS, shown, f"one of git+{', git+'.join(PORTS)}")
    rest, _, fragment = rest.partition("#")
    _expect("?" not in rest, shown, "no query string")
    authority, _, path = rest.partition("/")
    path, _, ref = path.partition("@")
    login, _, host = authority.rpartition("@")
    host = _host(scheme, host)
    name = _segments(_without_git(path), shown)
    origin = f"git+{scheme}://{host}/{quoted(name)}"
    _expect(bool(name), origin, "the path of a repository")
    ref = unquote(ref)
    _expect(not ref or bool(REF.fullmatch(ref)), origin, "a branch, a tag or a commit after @")
    user, _, password = (unquote(part) for part in login.partition(":"))
    ssh_user = f"{quote(user)}@" if scheme == "ssh" and user else ""
    return Repository(
        origin=origin,
        url=f"{scheme}://{ssh_user}{host}/{quote(_segments(path, shown))}",
        page=PAGE.get(host, "").replace("{repo}", quote(name)),
        ref=ref,
        folder=_folder(origin, fragment),
        login=(user, password) if login and scheme in ("https", "http") else None,
    )


def canonical_repository(source: str) -> str:
    """As the user wrote it, without login and `.git`: git+https://host/org/repo@v1#subdirectory=docs."""
    repo = parse_repository(source)
    ref = f"@{quote(repo.ref)}" if repo.ref else ""
    return f"{repo.origin}{ref}" + (f"#subdirectory={quote(repo.folder)}" if repo.folder else "")


def place_of(source: str) -> str:
    """What the names of its documents begin with: git+https://host/org/repo/docs, whatever the ref."""
    repo = parse_repository(source)
    return f"{repo.origin}/{quoted(repo.folder)}" if repo.folder else repo.origin


def quoted(path: str | bytes) -> str:
    """As part of an origin: a folder named `x.git` keeps its name, as a repository does not."""
    return (quote(path) + "/").replace(".git/", "%2Egit/")[:-1]


def _expect(is_so: bool, shown: str, expected: str) -> None:
    if not is_so:
        raise SourceError(f"{shown}: expected {expected}, found another text; the form is {FORM}")


def _host(scheme: str, host: str) -> str:
    host = host.lower()
    if scheme == "file":
        _expect(host in ("", "localhost"), "git+file://...", "no host, git+file:///path")
        return ""
    _expect(bool(HOST.fullmatch(host)), f"git+{scheme}://...", "a host")
    return host.removesuffix(PORTS[scheme])


def _without_git(path: str) -> str:
    path = path.rstrip("/")
    while path.endswith((".git", "/")):
        path = path.removesuffix(".git").rstrip("/")
    return path


def _segments(path: str, shown: str) -> str:
    parts = [part for part in unquote(path).split("/") if part]
    _expect(not {".", ".."} & set(parts), shown, "a path without . and ..")
    _expect(not re.search("[\x00-\x1f\x7f]", path + "".join(parts)), shown, "printable characters")
    return "/".join(parts)


def _folder(shown: str, fragment: str) -> str:
    key, _, value = fragment.partition("=")
    _expect(not fragment or key == "subdirectory", shown, "#subdirectory=FOLDER at the end")
    return _segments(value, shown)
