"""Requests of many callers through every mode of search."""

import random
from pathlib import Path

import pytest
from many_tenants import fill, made_retriever, may_see, random_request, search
from psycopg import sql

from rag.index import restricted
from rag.index.store import Store
from rag.search.retrieve import Retriever

REQUESTS = 150


def test_a_caller_gets_as_many_as_asked_for_and_only_its_own(store: Store, tmp_path: Path) -> None:
    corpus = fill(store, "callers", num_documents=300, num_chunks=3)
    retriever = made_retriever(store, tmp_path)
    rng = random.Random(1)
    for _ in range(REQUESTS):
        request = random_request("callers", rng)
        allowed = corpus.allowed(request)
        found = search(retriever, "callers", request)
        assert set(found) <= allowed
        assert len(found) == min(request.k, 3 * len(allowed)), request


def test_the_database_withholds_what_the_application_forgets_to(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = fill(store, "careless", num_documents=300, num_chunks=3)
    monkeypatch.setattr(restricted, "access_condition", lambda access, alias: (sql.SQL("true"), {}))
    monkeypatch.setattr(Retriever, "_allowed", lambda *_: None)
    retriever = made_retriever(store, tmp_path)
    rng, num_found = random.Random(2), 0
    for _ in range(REQUESTS):
        request = random_request("careless", rng)
        found = search(retriever, "careless", request)
        num_found += len(found)
        assert all(may_see(request.access, corpus.documents[source]) for source in found)
    assert num_found > REQUESTS
