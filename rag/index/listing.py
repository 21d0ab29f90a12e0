"""What the sources hold now, held against what a generation has. Reads and hashes; starts no Ray, loads no model.

An unchanged collection ends here: a document that did not change costs one read and one hash.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from rag.config import Settings
from rag.errors import ExtractionError, SourceError
from rag.index.ledger import Failure
from rag.index.store import Known
from rag.ingest.sources import canonical_source, is_within, list_documents, listed_root, read_document
from rag.records import DocumentRef, document_id

READERS = 8  # threads; a local disk is fast with one, an object store needs many
READ_AHEAD = 64  # documents whose bytes are in memory at once, at most


@dataclass(frozen=True)
class Listing:
    """What the sources of one run hold now."""

    origins: tuple[str, ...]  # canonical, one for each source named
    roots: tuple[str, ...]  # what bounds the documents of each
    documents: dict[str, DocumentRef]  # by source; what two origins list counts once

    def lost(self, source: str) -> bool:
        """Whether one of the origins held `source` and does not any more."""
        return source not in self.documents and any(is_within(source, root) for root in self.roots)


@dataclass
class Changes:
    """A listing, held against what the generation has."""

    new: list[DocumentRef] = field(default_factory=list)
    changed: list[DocumentRef] = field(default_factory=list)
    num_unchanged: int = 0
    num_bytes: int = 0  # of new and changed documents
    failures: list[Failure] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)  # doc_ids
    num_duplicates: int = 0  # documents whose bytes another listed one has as well
    num_skipped: int = 0  # of these, left out on request


def list_sources(sources: Sequence[str], settings: Settings) -> Listing:
    """Everything the sources hold. Raises SourceError for one that is not there, before anything is written."""
    documents: dict[str, DocumentRef] = {}
    for source in sources:
        for ref in list_documents(source, settings):
            documents.setdefault(ref.source, ref)
    origins = dict.fromkeys(canonical_source(source) for source in sources)
    return Listing(tuple(origins), tuple(listed_root(origin, settings) for origin in origins), documents)


def refuse_great_loss(listing: Listing, known: Iterable[Known]) -> None:
    """Raises SourceError where a source has lost more than half of its documents: an unmounted disk, a moved site."""
    stored = [document.source for document in known]
    for root in listing.roots:
        mine = [source for source in stored if is_within(source, root)]
        num_kept = sum(source in listing.documents for source in mine)
        if num_kept * 2 < len(mine):
            raise SourceError(
                f"{root}: expected the {len(mine)} documents it had, or most of them, found {num_kept};"
                f" nothing was changed. --force removes the other {len(mine) - num_kept}, --no-prune keeps them"
            )


def compare(
    listing: Listing,
    known: dict[str, Known],
    failed: dict[str, Failure],
    prune: bool = True,
    retry_failed: bool = False,
    deduplicate: bool = False,
) -> Changes:
    """What there is to do. `known` is by doc_id, `failed` by source.

    What failed before is not tried again with the same bytes, unless `retry_failed`.
    """
    changes = Changes()
    first_with: dict[str, str] = {}  # content hash -> source
    for ref, content_hash, num_bytes, error in _hashed(listing.documents.values()):
        if error:
            changes.failures.append(Failure(ref.source, error))
            continue
        before = known.get(document_id(ref.source))
        if first_with.setdefault(content_hash, ref.source) != ref.source:
            changes.num_duplicates += 1
            if deduplicate:
                changes.num_skipped += 1
                changes.vanished += [document_id(ref.source)] if before else []
                continue
        earlier = failed.get(ref.source)
        if before is not None and before.content_hash == content_hash:
            changes.num_unchanged += 1
        elif earlier is not None and earlier.content_hash == content_hash and not retry_failed:
            changes.failures.append(earlier)
        else:
            (changes.new if before is None else changes.changed).append(ref)
            changes.num_bytes += num_bytes
    if prune:
        changes.vanished += sorted(doc_id for doc_id, d in known.items() if listing.lost(d.source))
    return changes


def _hashed(refs: Iterable[DocumentRef]) -> Iterator[tuple[DocumentRef, str, int, str]]:
    """(document, content hash, bytes, reason why it cannot be read), in the order of `refs`."""
    pending = iter(refs)
    with ThreadPoolExecutor(READERS) as readers:
        while batch := list(islice(pending, READ_AHEAD)):
            yield from zip(batch, *zip(*readers.map(_hash, batch), strict=True), strict=True)


def _hash(ref: DocumentRef) -> tuple[str, int, str]:
    try:
        document = read_document(ref)
    except ExtractionError as error:
        return "", 0, str(error)
    return document.content_hash, len(document.content), ""
