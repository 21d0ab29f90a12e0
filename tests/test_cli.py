"""The `rag` command as a user runs it: a process, its exit status, its two streams."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import rag

from rag.config import Settings


@pytest.mark.parametrize(
    ("args", "env", "status", "message"),
    [
        (["ingest", "no/such/path"], {}, 1, "no/such/path"),
        (["ingest", "https://example.com/"], {}, 1, "https://example.com/"),
        (["ingest", "python:no_such_package"], {}, 1, "no_such_package"),
        (["search", "x", "-c", "nope"], {}, 1, "no collection named 'nope'"),
        (["ask", "x", "-c", "nope"], {}, 1, "no collection named 'nope'"),
        (["status", "-c", "nope"], {}, 1, "no collection named 'nope'"),
        (["ask", "x", "-c", "antarctica", "--llm", "gpt-9"], {}, 1, "'gpt-9'"),
        (["ingest", "README.md", "--model", "no-such-model"], {}, 1, "no-such-model"),
        (["search", "x"], {"DATABASE_URL": "postgresql://u:pw-4711@127.0.0.1:1/x"}, 1, "no PostgreSQL at"),
        (["search", "x"], {"RAG_SEARCH__K": "many"}, 2, "search.k"),
        (["search", "x", "--mode", "psychic"], {}, 2, "search.mode"),
        (["search", "x", "-c", "bad name!"], {}, 2, "collection"),
        (
            ["ingest", "README.md", "--chunk-size", "100", "--chunk-overlap", "100"],
            {},
            2,
            "overlap (100) must be smaller",
        ),
    ],
)
def test_unusable_input_is_one_clear_line(
    antarctica: Settings, args: list[str], env: dict[str, str], status: int, message: str
) -> None:
    done = rag(*args, home=antarctica.home, **env)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pw-4711" not in done.stderr


@pytest.mark.parametrize(
    "args", [["ingest"], ["search"], ["frobnicate"], ["search", "x", "--frob"], ["search", "x", "-k", "0"]]
)
def test_wrong_usage_exits_with_2_and_no_traceback(home: Path, args: list[str]) -> None:
    done = rag(*args, home=home)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_every_command_explains_itself_with_an_example(home: Path) -> None:
    for command in ("ingest", "search", "ask", "serve", "status"):
        assert f"rag {command} " in rag(command, "--help", home=home).stdout


def test_json_is_one_object_on_standard_output(antarctica: Settings) -> None:
    search = json.loads(rag("search", "penguin food", "-c", "antarctica", "--json", home=antarctica.home).stdout)
    assert set(search) == {"query", "collection", "hits", "timings_ms"}
    assert set(search["hits"][0]) == {"rank", "score", "source", "title", "text", "start", "end", "chunk_id"}
    done = rag(
        "ask", "What do penguins eat?", "-c", "antarctica", "--llm", "extractive", "--json", home=antarctica.home
    )
    assert "krill" in json.loads(done.stdout)["answer"]
    ingest = rag("ingest", str(antarctica.home / "antarctica"), "-c", "antarctica", "--json", home=antarctica.home)
    report = json.loads(ingest.stdout)
    assert report["documents"] == {"seen": 3, "new": 0, "changed": 0, "unchanged": 3, "removed": 0, "failed": 0}
    assert (report["chunks_embedded"], report["failures"]) == (0, [])


def test_status_shows_collections_and_the_url_hides_nothing_but_secrets(antarctica: Settings) -> None:
    done = rag("status", "-c", "antarctica", home=antarctica.home)
    assert "3 documents, 4 chunks of 700/50" in done.stdout
    assert rag("db", "url", home=antarctica.home).stdout.startswith("postgresql:///rag?host=")
    assert "up to date" in rag("db", "migrate", home=antarctica.home).stdout


def test_ask_prints_the_answer_and_its_numbered_sources(antarctica: Settings) -> None:
    done = rag("ask", "What do penguins eat?", "-c", "antarctica", "--llm", "extractive", home=antarctica.home)
    assert "Emperor penguins eat krill, fish and squid." in done.stdout
    assert "*[1] " in done.stdout
    assert "penguins.md#diet" in done.stdout


def test_help_is_quick_because_it_loads_neither_torch_nor_ray(home: Path) -> None:
    code = "import sys, rag.cli; sys.exit(bool({'torch', 'ray', 'openai', 'llama_cpp', 'griffe'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
