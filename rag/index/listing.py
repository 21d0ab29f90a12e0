"""What the sources hold now, held against what a generation has. Reads and hashes; starts no Ray, loads no model.

An unchanged collection ends here: a document that did not change costs one read and one hash.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from rag.config import Settings
from rag.errors import ExtractionError, NotAllowed, SourceError
from rag.index.ledger import Failure
from rag.index.store import Known
from rag.ingest.access import choose_access, with_access
from rag.ingest.sources import (
    canonical_source,
    is_within,
    list_documents,
    listed_roots,
    place_of_origin,
    read_document,
)
from rag.records import Access, DocumentRef, Gap, document_id

READERS = 8  # threads; a local disk is fast with one, an object store needs many
READ_AHEAD = 64  # documents whose bytes are in memory at once, at most


@dataclass(frozen=True)
class Listing:
    """What the sources of one run hold now."""

    origins: tuple[str, ...]  # canonical, one for each source named
    roots: tuple[str, ...]  # what bounds the documents of each
    documents: dict[str, DocumentRef]  # by source; what two origins list counts once
    access: Mapping[str, Access] = field(default_factory=dict)  # what the documents of each origin get
    gaps: tuple[Gap, ...] = ()
    others: tuple[str, ...] = ()  # origins of the collection whose documents this listing does not show: d/.github of d

    def lost(self, source: str) -> bool:
        """Whether one of the origins held `source` and does not any more.

        What a gap may hide is not lost, nor what another origin holds, unless that is the document itself.
        """
        if source in self.documents or any(hides(gap, source) for gap in self.gaps):
            return False
        if any(is_within(source, other) and source != other for other in self.others):
            return False
        return any(is_within(source, root) for root in self.roots)


@dataclass
class Changes:
    """A listing, held against what the generation has."""

    new: list[DocumentRef] = field(default_factory=list)
    changed: list[DocumentRef] = field(default_factory=list)
    relabelled: dict[str, Access] = field(default_factory=dict)  # by doc_id: the same text for other callers
    num_unchanged: int = 0
    num_bytes: int = 0  # of new and changed documents
    failures: list[Failure] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)  # doc_ids
    num_duplicates: int = 0  # documents whose bytes another listed one has as well
    skipped: list[str] = field(default_factory=list)  # doc_ids of these, left out on request

    @property
    def is_any(self) -> bool:
        """Whether chunks come, go, or change who sees them."""
        return bool(self.new or self.changed or self.vanished or self.relabelled)


def list_sources(sources: Sequence[str], settings: Settings, remembered: Mapping[str, Access] | None = None) -> Listing:
    """Everything the sources hold. Raises SourceError for one that is not there, before anything is written.

    `remembered` says what the documents of a place got in the run before (`rag.index.ledger.origin_access`).
    """
    documents: dict[str, DocumentRef] = {}
    access: dict[str, Access] = {}
    gaps: list[Gap] = []
    for source in sources:
        origin = canonical_source(source)
        before = (remembered or {}).get(place_of_origin(origin))
        access[origin] = choose_access(settings.ingest, before)
        try:
            for ref in list_documents(source, settings, gaps):
                documents.setdefault(ref.source, with_access(ref, access[origin], settings.ingest))
        except SourceError as error:
            if before is None:
                raise
            raise SourceError(
                f"{error}; if it is gone for good: rag forget '{origin}' -c {settings.collection}"
            ) from None
    places = {place_of_origin(origin) for origin in access}
    others = _roots((origin for origin in remembered or {} if place_of_origin(origin) not in places), settings)
    return Listing(
        origins=tuple(access),
        roots=_roots(access, settings),
        documents=documents,
        access=access,
        gaps=tuple(gaps),
        others=tuple(other for other in others if not any(is_within(source, other) for source in documents)),
    )


def _roots(origins: Iterable[str], settings: Settings) -> tuple[str, ...]:
    return tuple(root for origin in origins for root in listed_roots(origin, settings))


def hides(gap: Gap, source: str) -> bool:
    """Whether `source`, which was not listed, may be there all the same."""
    return source not in gap.visited and is_within(source, gap.place)


def without_idle_gaps(listing: Listing, sources: Collection[str]) -> Listing:
    """The listing without gaps by documents that are not among the stored `sources`.

    What was never read cannot hide what is stored; else one link that always fails would keep everything for ever.
    """
    return replace(listing, gaps=tuple(gap for gap in listing.gaps if not gap.by or gap.by in sources))


def refuse_great_loss(listing: Listing, sources: Collection[str]) -> None:
    """Raises SourceError where a source has lost more than half of the stored documents that were its own: an
    unmounted disk, a moved site."""
    for root in listing.roots:
        mine = [source for source in sources if is_within(source, root)]
        num_lost = sum(map(listing.lost, mine))
        if num_lost * 2 > len(mine):
            raise SourceError(
                f"{root}: expected the {len(mine)} documents it had, or most of them, found {len(mine) - num_lost};"
                f" nothing was changed. --force removes the other {num_lost}, --no-prune keeps them"
            )


def refuse_move(listing: Listing, known: Mapping[str, Known]) -> None:
    """Raises NotAllowed where documents belong to another tenant than the run says. `known` is by doc_id."""
    refs = [ref for ref in listing.documents.values() if not ref.own_access]
    moved = [ref for ref in refs if (d := known.get(document_id(ref.source))) and d.access.tenant != ref.tenant]
    if moved:
        owner = known[document_id(moved[0].source)].access.tenant
        raise NotAllowed(
            f"{len(moved)} documents belong to another tenant than {moved[0].tenant!r}: {moved[0].source} to {owner!r},"
            " say; nothing was changed. --force moves them, another --collection holds both"
        )


def compare(  # noqa: PLR0913 - everything that bears on the decision
    listing: Listing,
    known: dict[str, Known],
    failed: dict[str, Failure],
    *,
    prune: bool = True,
    retry_failed: bool = False,
    deduplicate: bool = False,
    may_move: bool = False,
) -> Changes:
    """What there is to do. `known` is by doc_id, and has every document of the collection; `failed` is by source.

    What failed before is not tried again with the same bytes, unless `retry_failed`. A row that moves to another tenant
    than the known one is a failure, unless it `may_move`. Equal documents of two types are no duplicates: one reader
    may fail where the other does not.
    """
    changes = Changes()
    first_with: dict[tuple[str, str, Access], str] = {}  # what the same callers see -> source
    for ref, read in _read_all(listing.documents.values()):
        doc_id = document_id(ref.source)
        before = known.get(doc_id)
        if error := read.error or ("" if may_move else _move(read.access, before)):
            changes.failures.append(Failure(ref.source, error))
            continue
        before = None if before is None or before.content_hash is None else before
        if first_with.setdefault((read.content_hash, ref.mime, read.access), ref.source) != ref.source:
            changes.num_duplicates += 1
            if deduplicate:
                changes.skipped.append(doc_id)
                changes.vanished += [doc_id] if before else []
                continue
        _sort(changes, ref, read, before, None if retry_failed else failed.get(ref.source))
    if prune:
        changes.vanished += sorted(doc_id for doc_id, d in known.items() if listing.lost(d.source))
    return changes


@dataclass(frozen=True)
class _Read:
    """What a look at a document says, or the reason why it cannot be read."""

    content_hash: str = ""
    num_bytes: int = 0
    access: Access = Access()
    error: str = ""


def _sort(changes: Changes, ref: DocumentRef, read: _Read, before: Known | None, earlier: Failure | None) -> None:
    if before is not None and before.content_hash == read.content_hash:
        if before.access == read.access:
            changes.num_unchanged += 1
        else:
            changes.relabelled[document_id(ref.source)] = read.access
    elif earlier is not None and earlier.content_hash == read.content_hash:
        changes.failures.append(earlier)
    else:
        (changes.new if before is None else changes.changed).append(ref)
        changes.num_bytes += read.num_bytes


def _move(access: Access, before: Known | None) -> str:
    """Why a row cannot have the tenant that it names; "" where it can."""
    if before is None or before.access.tenant == access.tenant:
        return ""
    return f"belongs to tenant {before.access.tenant!r}, the row says {access.tenant!r}; --force moves it"


def _read_all(refs: Iterable[DocumentRef]) -> Iterator[tuple[DocumentRef, _Read]]:
    """In the order of `refs`."""
    pending = iter(refs)
    with ThreadPoolExecutor(READERS) as readers:
        while batch := list(islice(pending, READ_AHEAD)):
            yield from zip(batch, readers.map(_read, batch), strict=True)


def _read(ref: DocumentRef) -> _Read:
    try:
        document = read_document(ref)
    except ExtractionError as error:
        return _Read(error=str(error))
    return _Read(document.content_hash, len(document.content), document.access)
