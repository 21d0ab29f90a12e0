"""A folder in BEIR layout in, judged queries out. Knows no database and no model.

corpus.jsonl        {"_id", "title", "text"} a line; or else
dataset.json        {"source": "python:ray"}: the corpus is what `rag ingest` reads there, ids are section sources
queries.jsonl       {"_id", "text"} a line
qrels/SPLIT.tsv     query-id, corpus-id, score; a header line
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

from rag.errors import SourceError
from rag.records import content_id

CORPUS, QUERIES, MANIFEST = "corpus.jsonl", "queries.jsonl", "dataset.json"
LAYOUT = f"expected {QUERIES}, qrels/SPLIT.tsv and either {CORPUS} or {MANIFEST} with a source"
ROW_ID = "?id="  # in the source of a JSONL row, see rag.ingest.rows

Qrels: TypeAlias = dict[str, dict[str, int]]  # query id -> section id -> grade; above 0 is relevant


@dataclass(frozen=True)
class Dataset:
    """Judged queries of one split. `queries` and `qrels` have the same keys, in the order of the judgements."""

    name: str
    split: str
    folder: Path
    source: str  # what is ingested: "" for the folder's own corpus.jsonl
    digest: str  # of the corpus, or of its source's name
    queries: dict[str, str]
    qrels: Qrels

    @property
    def collection(self) -> str:
        """Named by the folder and by what is in it: another corpus is another collection."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).lstrip("._-")[:40]
        return f"{name or 'dataset'}-{self.digest[:10]}"

    def section_id(self, source: str) -> str:
        """The id that judgements use for the section at `source`."""
        if self.source:
            return source
        return unquote(source.rpartition(ROW_ID)[2])

    @property
    def judged(self) -> set[str]:
        """The sections that are relevant to some query."""
        return {section for grades in self.qrels.values() for section, grade in grades.items() if grade > 0}


def load_dataset(folder: Path, split: str) -> Dataset:
    """Reads one split. Raises SourceError with what was expected, what was found and what to do."""
    folder = Path(os.path.abspath(folder.expanduser()))
    if not folder.is_dir():
        raise SourceError(f"{folder}: {LAYOUT}, found no folder; check the path")
    qrels = _read_qrels(_existing_qrels(folder, split))
    texts = _read_queries(folder / QUERIES)
    for query_id in qrels:
        if query_id not in texts:
            raise SourceError(
                f"{folder / QUERIES}: expected a text for each query of qrels/{split}.tsv, found none for"
                f" {query_id!r}; add the query or remove its judgements"
            )
    source, digest = _corpus_of(folder)
    queries = {query_id: texts[query_id] for query_id in qrels}
    return Dataset(folder.name, split, folder, source, digest, queries, qrels)


def _existing_qrels(folder: Path, split: str) -> Path:
    path = folder / "qrels" / f"{split}.tsv"
    if "/" not in split and path.is_file():
        return path
    splits = sorted(other.stem for other in (folder / "qrels").glob("*.tsv"))
    if not splits:
        raise SourceError(f"{folder}: {LAYOUT}, found no file in qrels/; check the path")
    raise SourceError(f"{folder}: expected qrels/{split}.tsv, found {', '.join(splits)}; choose one with --split")


def _corpus_of(folder: Path) -> tuple[str, str]:
    """(source, digest)"""
    corpus, manifest = folder / CORPUS, folder / MANIFEST
    if corpus.is_file():
        with open(corpus, "rb") as file:
            return "", hashlib.file_digest(file, "sha256").hexdigest()
    if not manifest.is_file():
        raise SourceError(f'{folder}: {LAYOUT}, found neither; add {MANIFEST}, such as {{"source": "python:ray"}}')
    try:
        found = json.loads(manifest.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{manifest}: expected a JSON object, found something else: {error}") from None
    source = found.get("source") if isinstance(found, dict) else None
    if not isinstance(source, str) or not source:
        raise SourceError(f'{manifest}: expected {{"source": "python:ray"}} or the like, found {found!r:.100}')
    return source, content_id(source)


def _read_queries(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            row: Any = json.loads(line)
            query_id, text = row["_id"], row["text"]
        except (ValueError, TypeError, KeyError):
            query_id = text = None
        if not isinstance(query_id, str | int) or not isinstance(text, str):
            raise SourceError(f'{path}, line {number}: expected {{"_id": …, "text": …}}, found {line[:100]!r}; fix it')
        texts[str(query_id).strip()] = text
    return texts


def _read_qrels(path: Path) -> Qrels:
    """A judgement that is given twice counts as it stands last."""
    qrels: Qrels = {}
    for number, line in _lines(path):
        fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
        if number == 1 and len(fields) == 3 and not _is_grade(fields[2]):
            continue  # the header
        if len(fields) != 3 or not all(fields) or not _is_grade(fields[2]):
            raise SourceError(
                f"{path}, line {number}: expected query-id, corpus-id and a whole number, separated by tabs,"
                f" found {line[:100].strip()!r}; fix it"
            )
        qrels.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    if not qrels:
        raise SourceError(f"{path}: expected judgements, found none; choose another --split")
    return qrels


def _is_grade(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,9}", text) is not None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{path}: expected a text file in UTF-8, cannot be read: {reason}; check the file") from None
