import os
import subprocess
import sys

import pytest

from rag.ingest.stdin import _mime

PROGRAM = """
import sys
from rag.config import load_settings
from rag.errors import SourceError
from rag.ingest.sources import list_documents, read_document
try:
    for ref in list_documents(sys.argv[2], load_settings(home=sys.argv[1], collection=sys.argv[3])):
        print(ref.source, ref.mime, read_document(ref).content.decode())
except SourceError as error:
    print(error)
"""


def run(home, content, source="-", collection="default"):
    command = [sys.executable, "-c", PROGRAM, str(home), source, collection]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"# Title\n\nText.", "stdin:input text/markdown # Title\n\nText.\n"),
        (b"\xef\xbb\xbf <!-- x -->\n<!DOCTYPE html>", "stdin:input text/html \ufeff <!-- x -->\n<!DOCTYPE html>\n"),
        (b"{{ template }}\n", "stdin:input text/markdown {{ template }}\n\n"),
        (
            b'{"id": 1, "text": "a"}\n{"text": "b"}\n',
            'stdin:input?id=1 application/x-row {"id": 1, "text": "a"}\n'
            'stdin:input?line=2 application/x-row {"text": "b"}\n',
        ),
        (b" \n", "-: expected a document on standard input, found nothing; pipe one in\n"),
    ],
)
def test_what_comes_on_standard_input_is_a_document_or_rows(tmp_path, content, expected):
    assert run(tmp_path, content) == expected


def test_what_came_last_is_read_again_by_a_collection_that_remembers_its_sources(tmp_path):
    assert run(tmp_path, b"", "stdin:input").startswith("stdin:input: expected what was piped in before, found nothing")
    run(tmp_path, b"old")
    run(tmp_path, b"new")
    for copy in (tmp_path / "sources").glob("stdin-*/*"):
        assert copy.name == "lock" or os.path.getsize(copy) == 3
    assert run(tmp_path, b"", "stdin:input") == "stdin:input text/markdown new\n"


def test_each_collection_has_a_standard_input_of_its_own(tmp_path):
    run(tmp_path, b"for a", collection="a")
    run(tmp_path, b"for b", collection="b")
    assert run(tmp_path, b"", "stdin:input", "a") == "stdin:input text/markdown for a\n"


def test_comments_without_end_are_looked_at_once():
    assert _mime(b"<!---->" * 100_000 + b"x") == "text/markdown"
    assert _mime(b"<!---->" * 100_000 + b"<html>") == "text/html"
