"""`rag db dump` and `rag db load` as a user runs them."""

import json
from pathlib import Path

import pytest
from test_cli import rag

from rag.config import Settings


def test_a_collection_moves_to_another_home_and_ingesting_there_embeds_nothing(
    antarctica: Settings, fresh_home: Path, tmp_path: Path
) -> None:
    dump = json.loads(
        rag("db", "dump", "-c", "antarctica", "--to", str(tmp_path / "d"), "--json", home=antarctica.home).stdout
    )
    assert (dump["documents"], dump["chunks"]) == (3, 4)
    done = rag("db", "load", str(tmp_path / "d"), "--collection", "south", home=fresh_home)
    assert done.stdout.startswith(f"south loaded from {tmp_path}/d: 3 documents, 4 chunks, 4 files, ")
    again = json.loads(rag("ingest", "-c", "south", "--json", home=fresh_home).stdout)  # its sources moved with it
    assert (again["documents"]["unchanged"], again["chunks_embedded"]) == (3, 0)


def test_json_lines_go_to_standard_output(antarctica: Settings) -> None:
    done = rag("db", "dump", "--collection", "antarctica", "--format", "jsonl", "-", home=antarctica.home)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    assert all(set(line) == {"source", "start", "end", "text", "document", "metadata"} for line in lines)
    ends = [line["source"].rpartition("/")[2] for line in lines]  # in reading order: #diet is below #penguins
    assert ends == ["penguins.md#penguins", "penguins.md#diet", "seals.html#seals", "stations.txt"]
    assert lines[1]["text"].startswith("Emperor penguins eat krill")


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["dump"], 2, "found 0; write `rag db dump --to DIR`"),
        (["dump", "a", "--to", "b"], 2, "found 2"),
        (["dump", "-"], 2, "only `--format jsonl` writes to standard output"),
        (["dump", "--format", "jsonl", "chunks.jsonl"], 2, "expected `-` alone"),
        (["dump", "--format", "jsonl", "-", "--json"], 2, "expected `-` alone"),
        (["dump", "--to", "/proc/no/such"], 1, "/proc/no/such"),
        (["dump", "--to", "x", "-c", "nope"], 1, "no collection named 'nope'"),
        (["load", "/no/such/folder"], 1, "found no manifest.json"),
        (["load", "/no/such/folder", "-c", "bad name"], 2, "collection"),
        (["load", "s3://bucket/dump"], 1, "s3"),
    ],
)
def test_unusable_input_is_one_clear_line(antarctica: Settings, args: list[str], status: int, message: str) -> None:
    extra = ["-c", "antarctica"] if args[0] == "dump" and "-c" not in args else []
    done = rag("db", *args, *extra, home=antarctica.home)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
