import pytest

from rag.ingest.extract import READERS, SPLITTERS
from rag.ingest.mimes import MIME_OF_SUFFIX, mime_of


def test_every_type_that_a_name_can_have_is_read():
    assert set(MIME_OF_SUFFIX.values()) <= set(SPLITTERS) | set(READERS)


@pytest.mark.parametrize(
    ("name", "mime"),
    [
        ("A.PDF", "application/pdf"),
        ("docs/a.b.md", "text/markdown"),
        ("Makefile", ""),
        (".py", ""),
        ("a.png", ""),
        ("package-lock.json", ""),
        ("jquery.min.js", ""),
        ("searchindex.js", ""),
        ("index.js", "text/javascript"),
    ],
)
def test_a_file_is_known_by_its_name(name, mime):
    assert mime_of(name) == mime
