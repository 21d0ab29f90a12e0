"""A Git repository in, its documents at one commit listed. Knows nothing of what is in them.

Nothing is checked out. Files are copied into the cache under the hash of their content, so no name in a repository
can write anywhere, no link in it is followed, no hook or filter of it runs; submodules and LFS are left out.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from rag.errors import SourceError
from rag.ingest.files import BLOCK_BYTES, MAX_DOCUMENT_BYTES, cache_folder, locked, too_large
from rag.ingest.folder import SKIPPED_FOLDERS, SPHINX_COPIES, SPHINX_INDEX, at_least_one
from rag.ingest.git_command import GitFailed, run_git, stream_git
from rag.ingest.git_url import Repository, canonical_repository, parse_repository, quoted
from rag.ingest.mimes import mime_of
from rag.records import DocumentRef, to_json

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
FILES = (b"100644", b"100755")  # not 120000, a link, and not 160000, a submodule
VENDORED = SKIPPED_FOLDERS | {"vendor", "third_party", "third-party", "bower_components", "dist", "build"}
MADE_BY_OTHERS = ("linguist-vendored", "linguist-generated")  # set in .gitattributes
PROSE = {"text/html", "text/markdown", "text/x-rst", "text/plain"}
DATA = {"application/json", "application/yaml", "application/toml"}
MAX_CODE_BYTES = 1 << 20  # a larger file of code or data was not written by hand
LOOK_BYTES = 8000  # where git looks for the NUL that makes a file binary
UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
MAX_ENTRIES = 1_000_000  # of a commit's tree, folders counted: ten trees inside each other may stand for any number
MAX_LISTING_BYTES = 128 * 2**20  # of their names
MAX_KEPT_BYTES = 10 * 2**30  # of a commit's documents; a small pack may hold any number
ASK_S, FETCH_S, LOCAL_S = 60.0, 3600.0, 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedFile:
    path: bytes  # Git's names need not be UTF-8
    blob: str  # hash of the content
    size: int

    @property
    def name(self) -> str:
        return os.fsdecode(self.path)


def list_repository(source: str, cache: Path) -> Iterator[DocumentRef]:
    """The documents that are tracked at the commit named; that of the default branch where none is.

    A repeated run asks the server for the commit, and fetches nothing if that is still the same.
    """
    repo = parse_repository(source)
    folder = cache_folder(cache, "git", repo.origin)
    try:
        with locked(folder):
            commit = _fetch(repo, folder)
            tracked = _tracked(repo, folder, commit)
            documents = _documents(repo, tracked)
            files = _written_by_hand(folder, tracked, [file for file in documents if not _left_out(repo, file)])
            kept = {file.blob: file.size for file in files if file.size <= MAX_DOCUMENT_BYTES}
            _refuse_bulk(repo, sum(kept.values()))
            _copy_blobs(folder, kept)
    except (GitFailed, OSError) as error:
        raise SourceError(
            f"{repo.origin}: expected a repository that can be fetched, found this: {error};"
            " check address, network and credentials"
        ) from None
    reasons = Counter(filter(None, (_left_out(repo, file) for file in documents)))
    reasons["generated"] = len(documents) - reasons.total() - len(files)
    refs = [_to_ref(repo, folder, commit, file) for file in files if not _is_binary(folder, file)]
    reasons["binary"] = len(files) - len(refs)
    if reasons.total():
        counts = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()) if count)
        log.warning("%s: files left out: %s", repo.origin, counts)
    return at_least_one(iter(refs), canonical_repository(source))


# The commit


def _fetch(repo: Repository, folder: Path) -> str:
    """The commit that the user means; it is in the cache on return."""
    store = folder / "store"
    if not (store / "HEAD").exists():
        run_git(["init", "--quiet", "--bare", "--template=", str(store)], LOCAL_S)
    wanted, commit = (repo.ref, repo.ref) if COMMIT.fullmatch(repo.ref) else _resolve(repo)
    if not _has(store, commit):
        options = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"]
        refspec = f"+{wanted}:refs/rag/head"  # a ref, so that the next fetch sends only what is new
        run_git(["fetch", *options, "--", repo.url, refspec], FETCH_S, store, repo.login)
        commit = run_git(["rev-parse", "--verify", "refs/rag/head^{commit}"], LOCAL_S, store).decode().strip()
    return commit


def _has(store: Path, commit: str) -> bool:
    try:
        run_git(["cat-file", "-e", f"{commit}^{{commit}}"], LOCAL_S, store)
    except GitFailed:
        return False
    return True


def _resolve(repo: Repository) -> tuple[str, str]:
    """(the full name of the branch or tag, the commit it stands for now)."""
    full = [repo.ref] if repo.ref.startswith("refs/") else [f"refs/heads/{repo.ref}", f"refs/tags/{repo.ref}"]
    names = full if repo.ref else ["HEAD"]
    peeled = [f"{name}^{{}}" for name in names]  # an annotated tag is an object of its own
    answer = run_git(["ls-remote", "--", repo.url, *names, *peeled], ASK_S, None, repo.login)
    pairs = (line.split("\t", 1) for line in answer.decode("utf-8", "replace").splitlines())
    commits = {name: commit for commit, name in pairs}
    for name, of_tag in zip(names, peeled, strict=True):
        if name in commits:
            return name, commits.get(of_tag, commits[name])
    if repo.ref:
        raise SourceError(f"{repo.origin}: expected a branch, tag or full commit, found no {repo.ref}; check its name")
    raise SourceError(f"{repo.origin}: expected a default branch with a commit, found none; name a branch after @")


# Its files


def _tracked(repo: Repository, folder: Path, commit: str) -> list[TrackedFile]:
    """All files of the commit; no links, no submodules."""
    # -t names the folders too: a tree without files would otherwise be walked in silence, for ever
    arguments = ["ls-tree", "-r", "-t", "-z", "-l", "--full-tree", commit]
    files = []
    with stream_git(arguments, folder / "store", b"") as listing:
        for line in _listed(repo, listing):
            about, _, path = line.partition(b"\t")
            mode, _, blob, size = about.split()
            if mode in FILES:
                files.append(TrackedFile(path, blob.decode(), int(size)))
    return files


def _listed(repo: Repository, listing: IO[bytes]) -> Iterator[bytes]:
    """The entries, which a NUL ends each, while they are no more than a repository has."""
    num_entries, num_bytes, rest = 0, 0, b""
    while block := listing.read(BLOCK_BYTES):
        *entries, rest = (rest + block).split(b"\0")
        num_entries += len(entries)
        num_bytes += len(block)
        if num_entries > MAX_ENTRIES or num_bytes > MAX_LISTING_BYTES:
            raise SourceError(
                f"{repo.origin}: expected at most {MAX_ENTRIES} files and folders, their names in"
                f" {MAX_LISTING_BYTES} bytes, found more; ingest a clone's folders one by one"
            )
        yield from entries


def _refuse_bulk(repo: Repository, num_bytes: int) -> None:
    if num_bytes > MAX_KEPT_BYTES:
        raise SourceError(
            f"{repo.origin}: expected at most {MAX_KEPT_BYTES} bytes of documents, found {num_bytes};"
            " name one of its folders: #subdirectory=docs"
        )


def _documents(repo: Repository, tracked: list[TrackedFile]) -> list[TrackedFile]:
    """The files of a type that is read, neither hidden nor outside the folder that the user named."""
    built = {above for above, _, last in (file.name.rpartition("/") for file in tracked) if last == SPHINX_INDEX}
    return [
        file
        for file in tracked
        if mime_of(file.name) and not _is_hidden(_below(repo, file)) and not _is_sphinx_copy(file.name, built)
    ]


def _is_hidden(parts: list[str]) -> bool:
    """Also of names such as "..", which Git stores where somebody makes it."""
    return any(part.startswith(".") for part in parts)


def _below(repo: Repository, file: TrackedFile) -> list[str]:
    """The parts of the file's path below the folder that the user named; [".."] for a file that is elsewhere."""
    if not repo.folder or file.name == repo.folder:
        return file.name.split("/") if not repo.folder else [file.name.rpartition("/")[2]]
    is_inside = file.name.startswith(f"{repo.folder}/")
    return file.name[len(repo.folder) + 1 :].split("/") if is_inside else [".."]


def _is_sphinx_copy(name: str, built: set[str]) -> bool:
    parts = name.split("/")
    return any("/".join(parts[:i]) in built for i, part in enumerate(parts[:-1]) if part in SPHINX_COPIES)


def _left_out(repo: Repository, file: TrackedFile) -> str:
    """Why the file is no document, by its name and size; "" for one that may be."""
    if any(part in VENDORED for part in _below(repo, file)[:-1]):
        return "vendored"
    mime = mime_of(file.name)
    is_code = mime in DATA or (mime.startswith("text/") and mime not in PROSE)
    return "large" if is_code and file.size > MAX_CODE_BYTES else ""


def _written_by_hand(folder: Path, tracked: list[TrackedFile], files: list[TrackedFile]) -> list[TrackedFile]:
    """Without what the repository's .gitattributes call vendored or generated, in the words that GitHub reads."""
    rules = [file for file in tracked if file.name.rpartition("/")[2] == ".gitattributes"]
    entries = b"".join(b"100644 %s\t%s\0" % (rule.blob.encode(), rule.path) for rule in rules if _is_plain(rule))
    if not entries or not files:
        return files
    store, index = folder / "store", folder / "index"
    index.unlink(missing_ok=True)
    run_git(["update-index", "-z", "--index-info"], LOCAL_S, store, stdin=entries, index=index)
    options = ["check-attr", "--cached", "--stdin", "-z", *MADE_BY_OTHERS]
    names = b"".join(file.path + b"\0" for file in files)
    answer = run_git(options, LOCAL_S, store, stdin=names, index=index).split(b"\0")
    made = {path for path, value in zip(answer[::3], answer[2::3], strict=False) if value in (b"set", b"true")}
    return [file for file in files if file.path not in made]


def _is_plain(rule: TrackedFile) -> bool:
    return not _is_hidden(rule.name.split("/")[:-1])


# Their contents


def _blob_path(folder: Path, blob: str) -> Path:
    return folder / "blobs" / blob[:2] / blob


def _copy_blobs(folder: Path, blobs: Iterable[str]) -> None:
    """Each blob as a file of its own, which later commits share; whole or absent."""
    missing = [blob for blob in dict.fromkeys(blobs) if not _blob_path(folder, blob).exists()]
    if missing:
        asked = "".join(f"{blob}\n" for blob in missing).encode()
        with stream_git(["cat-file", "--batch"], folder / "store", asked) as answers:
            for blob in missing:
                _copy_blob(answers, _blob_path(folder, blob))


def _copy_blob(answers: IO[bytes], path: Path) -> None:
    header = answers.readline().split()
    if len(header) != 3:
        raise GitFailed(f"git cat-file: found {b' '.join(header).decode(errors='replace') or 'nothing'}")
    left = int(header[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    with open(aside, "wb") as file:
        while block := answers.read(min(left, BLOCK_BYTES)):
            file.write(block)
            left -= len(block)
    if left:
        raise GitFailed("git cat-file: ended early")
    answers.read(1)  # a line end parts the answers
    os.replace(aside, path)


def _is_binary(folder: Path, file: TrackedFile) -> bool:
    """A text file with a NUL is data; PDF and the like are not meant."""
    mime = mime_of(file.name)
    if not (mime.startswith("text/") or mime in DATA) or file.size > MAX_DOCUMENT_BYTES:
        return False
    with open(_blob_path(folder, file.blob), "rb") as content:
        start = content.read(LOOK_BYTES)
    return b"\0" in start and not start.startswith(UTF_16_OR_32)


def _to_ref(repo: Repository, folder: Path, commit: str, file: TrackedFile) -> DocumentRef:
    path = quote(file.path)
    about = {"repository": repo.origin, "commit": commit, "path": file.path.decode("utf-8", "replace")}
    page = {"url": repo.page.format(commit=commit, path=path)} if repo.page else {}
    error = str(too_large(file.size)) if file.size > MAX_DOCUMENT_BYTES else ""
    return DocumentRef(
        f"{repo.origin}/{quoted(file.path)}",
        mime_of(file.name),
        path=None if error else str(_blob_path(folder, file.blob)),
        meta=to_json(about | page),
        error=error,
    )
