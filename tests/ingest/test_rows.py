import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.config import load_settings
from rag.errors import ExtractionError, SourceError
from rag.ingest.extract import extract
from rag.ingest.files import MAX_DOCUMENT_BYTES
from rag.ingest.rows import list_rows, read_row, split_row
from rag.ingest.sources import list_documents, read_document
from rag.records import Document, DocumentRef, Section

ORIGIN = "file:///x.jsonl"


def rows_of(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(list_rows(path, ORIGIN))


def names_and_errors(refs):
    return [(ref.source.removeprefix(ORIGIN), ref.error) for ref in refs]


def test_a_row_is_read_from_its_place_in_the_file(tmp_path):
    refs = rows_of(tmp_path, '{"_id": "a", "text": "one"}\n\n  \r\n{"_id": "b", "text": "zwölf"}')
    path = str(tmp_path / "x.jsonl")
    assert refs == [
        DocumentRef(f"{ORIGIN}?id=a", "application/x-row", path=path, start=0, end=27),
        DocumentRef(f"{ORIGIN}?id=b", "application/x-row", path=path, start=33, end=63),
    ]
    assert read_document(refs[1]).content == '{"_id": "b", "text": "zwölf"}'.encode()


def test_appending_changes_no_row_that_was_there(tmp_path):
    (before,) = rows_of(tmp_path, '{"id": 1, "text": "one"}')
    hash_before = read_document(before).content_hash
    after = rows_of(tmp_path, '{"id": 1, "text": "one"}\r\n{"id": 2, "text": "two"}\r\n')
    assert after[0] == before and read_document(after[0]).content_hash == hash_before


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ('{"_id": "a", "id": "b", "text": "t"}', "?id=a"),
        ('{"id": 7, "text": "t"}', "?id=7"),
        ('{"id": null, "doc_id": "c", "text": "t"}', "?id=c"),
        ('{"id": "a b#c?d&e=f%", "text": "t"}', "?id=a%20b%23c%3Fd%26e%3Df%25"),
        ('{"id": "\\u0000\\ud800x", "text": "t"}', "?id=x"),
        ('{"url": "https://e.org/a?b#c", "text": "t"}', "?url=https://e.org/a%3Fb%23c"),
        ('{"page_content": "t", "metadata": {"source": "docs/a.md"}}', "?url=docs/a.md"),
        ('{"id": "", "text": "t"}', "?line=1"),
        ('{"id": true, "text": "t"}', "?line=1"),
        ('{"id": ["x"], "text": "t"}', "?line=1"),
    ],
)
def test_a_row_is_named_by_its_id_or_its_address_or_its_line(tmp_path, row, name):
    assert names_and_errors(rows_of(tmp_path, row)) == [(name, "")]


def test_an_address_is_named_without_its_login(tmp_path):
    (ref,) = rows_of(tmp_path, '{"url": "https://alice:s3cret@host/@x?a=b@c", "text": "one"}')
    assert ref.source == f"{ORIGIN}?url=https://host/@x%3Fa%3Db@c"
    assert read_row(b'{"url": "https://alice:s3cret@host/@x?a=b@c", "text": "one"}', ref.source)
    (empty,) = rows_of(tmp_path, '{"text": "one"}\n{"id": "ftp://s3cret@host/", "text": 1}')[1:]
    assert (empty.source, "s3cret" in empty.error) == (f"{ORIGIN}?id=ftp://host/", False)


def test_the_rows_of_one_page_are_its_parts_and_an_id_that_is_taken_is_an_error(tmp_path):
    lines = ['{"url": "p", "text": "1"}', '{"url": "p", "text": "2"}', '{"id": "p", "text": "3"}']
    lines += ['{"id": "p", "text": "4"}', '{"url": "p", "text": "5"}']
    assert names_and_errors(rows_of(tmp_path, "\n".join(lines))) == [
        ("?url=p", ""),
        ("?url=p&part=2", ""),
        ("?id=p", ""),
        ("?line=4", "line 4: expected an id of its own, found the id=p of line 3; rename one"),
        ("?url=p&part=3", ""),
    ]


def test_a_bad_line_has_a_reason_and_the_rest_goes_on(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b"[1]",
        b'{"question": "q", "answer": "a"}',
        b'{"text": "\xff"}',
        b'{"text": 7}',
        b"[" * 100_000,
        b'{"text": ' + b"9" * 5000 + b"}",
        b'{"text": "' + b"x" * MAX_DOCUMENT_BYTES + b'"}',
        b'{"text": "last"}',
    ]
    fields = "text, page_content, contents, content, body, passage, document, context, abstract"
    found = names_and_errors(rows_of(tmp_path, b"\n".join(lines)))
    assert [name for name, _ in found] == [f"?line={number}" for number in range(1, 11)]
    errors = [error for _, error in found]
    assert errors[0] == errors[9] == ""
    assert errors[1].startswith("line 2: expected a JSON object, found something else: Unterminated string")
    assert errors[2:6] == [
        "line 3: expected a JSON object, found list",
        f"line 4: expected a text in one of {fields}, found question, answer; rename the field",
        "line 5: expected a JSON object, found something else: invalid start byte",
        f"line 6: expected a text in one of {fields}, found text; rename the field",
    ]
    assert errors[6] == "line 7: expected a JSON object, found one nested too deeply; flatten it"
    assert errors[7].startswith("line 8: expected a JSON object, found something else: Exceeds the limit")
    assert errors[8].startswith(f"line 9: expected at most {MAX_DOCUMENT_BYTES} bytes, found {len(lines[8]) + 1};")


def test_a_row_as_long_as_a_document_may_be_is_read(tmp_path):
    text = "x" * (MAX_DOCUMENT_BYTES - len('{"text": ""}'))
    (ref,) = rows_of(tmp_path, f'{{"text": "{text}"}}\n')
    assert len(read_document(ref).content) == MAX_DOCUMENT_BYTES


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "found an empty file"),
        ("\n\n", "found an empty file"),
        ('{\n"a": 1\n}\n', "found none in 3; the first has this: line 1: expected a JSON object"),
        ('{"question": "q"}', "found none in 1; the first has this: line 1: expected a text in one of text,"),
    ],
)
def test_a_file_without_a_good_row_is_refused(tmp_path, content, found):
    with pytest.raises(SourceError) as caught:
        rows_of(tmp_path, content)
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (ref,) = rows_of(tmp_path, b'\xef\xbb\xbf{"id": 1, "text": "one"}\n')
    assert read_document(ref).content == b'{"id": 1, "text": "one"}'


def test_a_row_becomes_one_section_with_its_title_and_the_other_fields_become_metadata(tmp_path):
    row = '{"_id": "7", "title": " Wing\\n  theory", "text": "\\nLift\\r\\nand\\u0000 drag.\\n", "year": 1958}'
    (ref,) = rows_of(tmp_path, row)
    document = read_document(ref)
    assert document == Document(f"{ORIGIN}?id=7", "application/x-row", row.encode(), '{"_id": "7", "year": 1958}')
    assert extract(document) == [Section(f"{ORIGIN}?id=7", "Wing theory", "Lift\nand drag.")]


def test_metadata_holds_only_what_postgresql_can_store():
    row = b'{"text": "t", "title": [1], "a": NaN, "b": [1e999, "x\\u0000\\ud800"], "c\\u0000": {"d": null}}'
    assert read_row(row, f"{ORIGIN}?line=1") == '{"a": null, "b": [null, "x"], "c": {"d": null}, "title": [1]}'


def test_a_title_may_be_in_the_metadata():
    assert split_row('{"page_content": "t", "metadata": {"title": "T"}}', "s") == [Section("s", "T", "t")]


def test_a_row_without_text_fails_alone():
    with pytest.raises(ExtractionError, match="no text"):
        extract(Document("s", "application/x-row", b'{"text": " "}'))


def test_a_file_that_changes_between_listing_and_reading_gives_no_row_under_a_wrong_name(tmp_path):
    refs = rows_of(tmp_path, '{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    (tmp_path / "x.jsonl").write_text('{"id": 2, "text": "two"}\n')
    with pytest.raises(ExtractionError, match="the row with id=1, found id=2: the file has changed; run again"):
        read_document(refs[0])
    with pytest.raises(ExtractionError, match="the file is shorter than when it was listed; run again"):
        read_document(refs[1])


@given(st.lists(st.dictionaries(st.sampled_from(["id", "url", "title", "n"]), st.text() | st.integers())))
def test_any_rows_are_listed_once_each_and_read_back(tmp_path_factory, rows):
    rows = [row | {"text": f"text {i}"} for i, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not rows:
        return
    refs = list(list_rows(path, ORIGIN))
    assert len({ref.source for ref in refs}) == len(rows)
    for row, ref in zip(rows, refs, strict=True):
        if ref.error:
            assert "expected an id of its own" in ref.error
            continue
        (section,) = extract(read_document(ref))
        assert (section.source, section.text) == (ref.source, row["text"])


def test_a_listed_row_takes_little_memory_however_long_it_is(tmp_path):
    path = tmp_path / "x.jsonl"
    with open(path, "w") as file:
        file.writelines(f'{{"_id": "{i}", "text": "{"x" * 5000}"}}\n' for i in range(5000))
    tracemalloc.start()
    refs = list(list_documents(str(path), load_settings(home=tmp_path)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(refs) == 5000 and held / 5000 < 1000


def test_fields_that_are_too_much_for_the_database_are_a_failure():
    row = json.dumps({"id": 1, "text": "a", "numbers": [1] * 500_000}).encode()
    with pytest.raises(
        ExtractionError, match="expected at most 1000000 characters of fields besides the text, found 15"
    ):
        read_row(row, f"{ORIGIN}?id=1")
