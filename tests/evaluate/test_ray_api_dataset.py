"""The labelled questions over ray's API docs are sound, and split by symbol as their README says."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from rag.config import load_settings
from rag.ingest.extract import extract
from rag.ingest.sources import list_documents, read_document

FOLDER = Path(__file__).parents[2] / "datasets" / "ray-api"
SALT = "ray-api/12"
Qrels = dict[str, dict[str, int]]


def read_lines(name: str) -> dict[str, str]:
    rows = [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    assert all(list(row) == ["_id", "text"] for row in rows)
    assert len({row["_id"] for row in rows}) == len(rows), f"{name} has an id twice"
    return {row["_id"]: row["text"] for row in rows}


def read_qrels(split: str) -> Qrels:
    header, *lines = (FOLDER / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    qrels: Qrels = {}
    for line in lines:
        query, source, score = line.split("\t")
        assert source not in qrels.setdefault(query, {}), f"{query} judges {source} twice"
        qrels[query][source] = int(score)
    return qrels


def symbol(source: str) -> str:
    """The class that a section belongs to, or the module's function: up to the first name with a capital letter."""
    parts = source.removeprefix("python:").split(".")
    return ".".join(parts[: next((i for i, part in enumerate(parts, 1) if part != part.lower()), len(parts))])


def groups(qrels: Qrels) -> dict[str, str]:
    """Each symbol -> the first of the symbols that questions tie to it, directly or through others."""
    first: dict[str, str] = {}
    for judged in qrels.values():
        names = {symbol(source) for source in judged}
        tied = {first.get(name, name) for name in names}
        first |= dict.fromkeys([name for name in first if first[name] in tied], min(tied))
        first |= dict.fromkeys(names, min(tied))
    return first


def half(group: str) -> str:
    return ("dev", "test")[hashlib.sha256(f"{SALT}:{group}".encode()).digest()[0] % 2]


@pytest.fixture(scope="module")
def queries() -> dict[str, str]:
    return read_lines("queries.jsonl")


@pytest.fixture(scope="module")
def splits() -> dict[str, Qrels]:
    return {name: read_qrels(name) for name in ("dev", "test")}


def test_every_judged_section_is_listed_from_the_installed_ray_and_has_text(splits):
    judged = {source for qrels in splits.values() for scores in qrels.values() for source in scores}
    refs = [ref for ref in list_documents("python:ray", load_settings()) if ref.source in judged]
    sections = [section for ref in refs for section in extract(read_document(ref))]
    assert judged - {section.source for section in sections if section.text.strip()} == set()


def test_every_question_is_judged_in_exactly_one_split_and_answered_in_full_by_some_section(queries, splits):
    assert sorted([*splits["dev"], *splits["test"]]) == sorted(queries)
    scores = [set(judged.values()) for qrels in splits.values() for judged in qrels.values()]
    assert all(2 in found and found <= {1, 2} for found in scores)


def test_no_symbol_answers_in_both_splits_and_the_hash_decides_which(splits):
    symbols = {name: {symbol(s) for judged in qrels.values() for s in judged} for name, qrels in splits.items()}
    assert symbols["dev"] & symbols["test"] == set()
    group_of = groups(splits["dev"] | splits["test"])
    assert {name: {half(group_of[one]) for one in ones} for name, ones in symbols.items()} == {
        "dev": {"dev"},
        "test": {"test"},
    }


def test_there_are_as_many_questions_as_the_readme_says(queries, splits):
    areas = Counter(query.rpartition("-")[0] for query in queries)
    of_dev = Counter(query.rpartition("-")[0] for query in splits["dev"])
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = [f"| {area} | {count} | {of_dev[area]} | {count - of_dev[area]} |" for area, count in areas.items()]
    total = f"| **all** | {len(queries)} | {len(splits['dev'])} | {len(splits['test'])} |"
    assert [row for row in [*table, total] if row not in readme] == []
    assert len(queries) >= 150
    assert 0.4 < len(splits["dev"]) / len(queries) < 0.6


def test_thirty_questions_cannot_be_answered_and_have_no_judgement(queries):
    unanswerable = read_lines("unanswerable.jsonl")
    assert len(unanswerable) == 30
    assert unanswerable.keys() & queries.keys() == set()


def test_no_question_is_asked_twice(queries):
    texts = [" ".join(text.lower().split()) for text in [*queries.values(), *read_lines("unanswerable.jsonl").values()]]
    assert all(texts)
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_two_questions_that_share_a_symbol_tie_all_symbols_of_both():
    qrels = {
        "q1": {"python:ray.get": 2, "python:ray.data.Dataset.map": 1},
        "q2": {"python:ray.wait": 2},
        "q3": {"python:ray.wait": 1, "python:ray.data.Dataset": 2},
        "q4": {"python:ray.serve.config.gRPCOptions": 2},
    }
    assert groups(qrels) == {
        "ray.get": "ray.data.Dataset",
        "ray.data.Dataset": "ray.data.Dataset",
        "ray.wait": "ray.data.Dataset",
        "ray.serve.config.gRPCOptions": "ray.serve.config.gRPCOptions",
    }
