"""BEIR folders as people have them."""

import json
from pathlib import Path

import pytest

from rag.errors import SourceError
from rag.evaluate.dataset import load_dataset

QRELS = "query-id\tcorpus-id\tscore\nq2\td1\t1\nq2\td 2\t0\nq1\td1\t3\n"


def make(folder: Path, qrels: str = QRELS, **files: str) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    written = {
        "corpus.jsonl": '{"_id": "d1", "title": "A", "text": "a"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "one"}\n{"_id": "q2", "text": "two"}\n\n{"_id": 3, "text": "three"}\n',
    } | {name.replace("__", "."): text for name, text in files.items()}
    for name, text in written.items():
        if text:
            (folder / name).write_text(text)
    return folder


def test_queries_and_judgements_of_a_split_are_read_in_the_order_of_the_judgements(tmp_path: Path) -> None:
    dataset = load_dataset(make(tmp_path / "toy"), "test")
    assert list(dataset.queries.items()) == [("q2", "two"), ("q1", "one")]
    assert dataset.qrels == {"q2": {"d1": 1, "d 2": 0}, "q1": {"d1": 3}}
    assert dataset.judged == {"d1"}
    assert (dataset.name, dataset.split, dataset.source) == ("toy", "test", "")


def test_a_folder_can_be_named_from_within(tmp_path: Path) -> None:
    folder = make(tmp_path / "toy")
    assert load_dataset(folder / "qrels" / "..", "test").name == "toy"


def test_a_section_is_named_by_the_id_of_its_row(tmp_path: Path) -> None:
    dataset = load_dataset(make(tmp_path), "test")
    assert dataset.section_id("file:///x/corpus.jsonl?id=d%202") == "d 2"
    assert dataset.section_id("file:///x/corpus.jsonl?id=a%23b%3Fid%3D%C3%A9/c") == "a#b?id=é/c"


def test_a_corpus_that_is_a_source_names_its_sections_itself(tmp_path: Path) -> None:
    folder = make(tmp_path / "ray-api", corpus__jsonl="", dataset__json='{"source": "python:ray", "licence": "x"}')
    dataset = load_dataset(folder, "test")
    assert dataset.source == "python:ray"
    assert dataset.section_id("https://x.org/a?id=3#b") == "https://x.org/a?id=3#b"


def test_the_collection_is_named_by_the_folder_and_the_corpus(tmp_path: Path) -> None:
    one = load_dataset(make(tmp_path / "a" / "My set!"), "test")
    moved = load_dataset(make(tmp_path / "b" / "My set!", qrels=QRELS + "q1\td9\t1\n"), "test")
    other = load_dataset(make(tmp_path / "c" / "My set!", corpus__jsonl='{"_id": "d1", "text": "b"}\n'), "test")
    assert one.collection == moved.collection != other.collection
    assert one.collection.startswith("My-set--") and len(one.collection) == len("My-set--") + 10
    assert load_dataset(make(tmp_path / ("é" * 99)), "test").collection.startswith("dataset-")


def test_a_file_without_header_loses_no_judgement_and_a_repeated_one_counts_last(tmp_path: Path) -> None:
    qrels = load_dataset(make(tmp_path, qrels="q1\td1\t1\r\nq1\td2\t1\r\nq1\td1\t2\r\n"), "test").qrels
    assert qrels == {"q1": {"d1": 2, "d2": 1}}


def test_ids_that_are_numbers_in_json_are_those_of_the_table(tmp_path: Path) -> None:
    assert load_dataset(make(tmp_path, qrels="query-id\tcorpus-id\tscore\n3\t7\t1\n"), "test").queries == {"3": "three"}


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({}, "dev", "expected qrels/dev.tsv, found test; choose one with --split"),
        ({}, "../qrels/test", "expected qrels/../qrels/test.tsv, found test"),
        ({"qrels": ""}, "test", "test.tsv: expected judgements, found none"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, "test", "expected judgements, found none"),
        (
            {"qrels": "q1 0 d1 1\n"},
            "test",
            "line 1: expected query-id, corpus-id and a whole number, separated by tabs",
        ),
        ({"qrels": QRELS + "q1\td1\t0.5\n"}, "test", r"found 'q1\td1\t0.5'; fix it"),
        ({"qrels": QRELS + "q1\t\t1\n"}, "test", "line 5: expected query-id"),
        (
            {"qrels": QRELS + "q9\td1\t1\n"},
            "test",
            "expected a text for each query of qrels/test.tsv, found none for 'q9'",
        ),
        ({"queries__jsonl": '{"id": 1}\n'}, "test", 'queries.jsonl, line 1: expected {"_id": …, "text": …}, found'),
        ({"queries__jsonl": "[]\n"}, "test", "queries.jsonl, line 1"),
        ({"queries__jsonl": ""}, "test", "queries.jsonl: expected a text file in UTF-8, cannot be read: No such file"),
        ({"corpus__jsonl": ""}, "test", 'found neither; add dataset.json, such as {"source": "python:ray"}'),
        ({"corpus__jsonl": "", "dataset__json": "{"}, "test", "dataset.json: expected a JSON object"),
        ({"corpus__jsonl": "", "dataset__json": "[1]"}, "test", "or the like, found [1]"),
        ({"corpus__jsonl": "", "dataset__json": '{"source": 1}'}, "test", "or the like, found {'source': 1}"),
    ],
)
def test_a_bad_folder_is_one_line_with_what_to_do(
    tmp_path: Path, files: dict[str, str], split: str, message: str
) -> None:
    folder = make(tmp_path, **files)
    with pytest.raises(SourceError) as caught:
        load_dataset(folder, split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_or_something_else_is_told_the_layout(tmp_path: Path) -> None:
    layout = "expected queries.jsonl, qrels/SPLIT.tsv and either corpus.jsonl or dataset.json with a source"
    with pytest.raises(SourceError, match=layout + ", found no folder; check the path"):
        load_dataset(tmp_path / "nothing", "test")
    with pytest.raises(SourceError, match=layout + ", found no file in qrels/"):
        load_dataset(tmp_path, "test")


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (make(tmp_path) / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "\xff"}\n')
    with pytest.raises(SourceError, match="expected a text file in UTF-8, cannot be read: 'utf-8' codec"):
        load_dataset(tmp_path, "test")


def test_bytes_before_the_first_line_do_not_matter(tmp_path: Path) -> None:
    folder = make(tmp_path)
    row = json.dumps({"_id": "q1", "text": "one"}).encode()
    (folder / "queries.jsonl").write_bytes(b"\xef\xbb\xbf" + row)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert load_dataset(folder, "test").queries == {"q1": "one"}
