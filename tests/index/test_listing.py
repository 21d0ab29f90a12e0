"""What there is to do is decided without Ray, a model or a database."""

from pathlib import Path

import pytest

from rag.config import load_settings
from rag.errors import SourceError
from rag.index.ledger import Failure
from rag.index.listing import Listing, compare, list_sources, refuse_great_loss
from rag.index.store import Known
from rag.ingest.sources import read_document
from rag.records import document_id


def listing_of(folder: Path, **texts: str) -> Listing:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return list_sources([str(folder)], load_settings())


def known_from(listing: Listing) -> dict[str, Known]:
    """A manifest that holds all of the listing."""
    return {
        document_id(ref.source): Known(ref.source, read_document(ref).content_hash)
        for ref in listing.documents.values()
    }


def sources_of(known: dict[str, Known]) -> set[str]:
    return {document.source for document in known.values()}


def names(refs: list) -> list[str]:
    return [ref.source.rsplit("/", 1)[-1] for ref in refs]


def test_new_changed_unchanged_and_vanished_are_told_apart(tmp_path: Path) -> None:
    known = known_from(listing_of(tmp_path, same="1", other="2", gone="3"))
    (tmp_path / "gone.txt").unlink()
    changes = compare(listing_of(tmp_path, other="two", fresh="4"), known, {})
    assert (names(changes.new), names(changes.changed), changes.num_unchanged) == (["fresh.txt"], ["other.txt"], 1)
    assert changes.vanished == [document_id((tmp_path / "gone.txt").as_uri())]
    assert changes.num_bytes == len("two") + len("4")


def test_without_pruning_what_vanished_stays(tmp_path: Path) -> None:
    known = known_from(listing_of(tmp_path, a="1", b="2"))
    (tmp_path / "b.txt").unlink()
    assert compare(listing_of(tmp_path), known, {}, prune=False).vanished == []


def test_what_failed_is_tried_again_when_it_changed_or_on_request(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, a="1")
    (ref,) = listing.documents.values()
    failed = {ref.source: Failure(ref.source, "no text", read_document(ref).content_hash)}
    assert compare(listing, {}, failed).failures == list(failed.values())
    assert names(compare(listing, {}, failed, retry_failed=True).new) == ["a.txt"]
    assert names(compare(listing_of(tmp_path, a="2"), {}, failed).new) == ["a.txt"]


def test_identical_documents_are_reported_and_left_out_on_request(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, a="same", b="same", c="other")
    reported = compare(listing, {}, {})
    assert (names(reported.new), reported.num_duplicates, reported.skipped) == (["a.txt", "b.txt", "c.txt"], 1, [])
    skipped = compare(listing, known_from(listing), {}, deduplicate=True)
    assert (skipped.num_unchanged, skipped.skipped) == (2, [document_id((tmp_path / "b.txt").as_uri())])
    assert skipped.vanished == [document_id((tmp_path / "b.txt").as_uri())]


def test_a_source_that_lost_more_than_half_is_refused(tmp_path: Path) -> None:
    known = known_from(listing_of(tmp_path, a="1", b="2", c="3", d="4"))
    for name in "ab":
        (tmp_path / f"{name}.txt").unlink()
    refuse_great_loss(listing_of(tmp_path), sources_of(known))  # half is left
    (tmp_path / "c.txt").unlink()
    with pytest.raises(SourceError, match="expected the 4 documents it had, or most of them, found 1;.*--force"):
        refuse_great_loss(listing_of(tmp_path), sources_of(known))


def test_a_document_that_cannot_be_read_is_a_failure_and_no_loss(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, a="1")
    known = known_from(listing)
    (tmp_path / "a.txt").unlink()  # after it was listed
    changes = compare(listing, known, {})
    assert [f.reason for f in changes.failures] == ["cannot be read: No such file or directory"]
    assert changes.vanished == []
