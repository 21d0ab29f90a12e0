"""A Hugging Face dataset in, its rows listed. Knows nothing of what is in them.

    hf:org/name[/config][:split]    a dataset of the hub
    hf:/path[:split]                a folder: one that `save_to_disk` wrote, or one with parquet, JSON or CSV files

The rows are copied into the cache as JSONL, so that each can be read by a seek. Images, audio and bytes are left out.
"""

import json
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rag.errors import SourceError
from rag.ingest.files import cache_folder, keep, locked
from rag.ingest.rows import list_rows
from rag.records import DocumentRef

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")
SPLIT = re.compile(r"\w+(\.\w+)*")
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves
BATCH_ROWS = 1000


def canonical_dataset(source: str) -> str:
    """One spelling: `hf:org/name:train`, `hf:/absolute/path:train`."""
    name, split = _parse(source)
    return f"hf:{quote(name)}" + (f":{split}" if split else "")


def list_dataset(source: str, cache: Path) -> Iterator[DocumentRef]:
    """The rows of the split named, or of all splits in their order."""
    name, split = _parse(source)
    origin = canonical_dataset(source)
    found = _load(name, split, origin, cache)
    if not isinstance(found, dict):
        return _list_split(found, origin, cache)
    return chain(*[_list_split(rows, f"{origin}:{name}", cache) for name, rows in found.items()])


def _parse(source: str) -> tuple[str, str]:
    """(absolute path or name on the hub, split or "")."""
    name, colon, split = source.removeprefix("hf:").rpartition(":")
    if not colon or not SPLIT.fullmatch(split):
        name, split = source.removeprefix("hf:"), ""
    name = unquote(name)
    if name.startswith(("/", ".")):
        return os.path.abspath(name), split
    if not HUB_NAME.fullmatch(name):
        raise SourceError(f"hf:{name}: expected hf:org/name[:split] or hf:/path[:split]; check its spelling")
    return name, split


def _load(name: str, split: str, origin: str, cache: Path) -> Any:
    """A dataset, or a dict of them by split."""
    try:
        import datasets
    except ImportError:
        raise SourceError(f"{origin}: expected the library datasets, found none; pip install datasets") from None
    if name.startswith("/") and not os.path.isdir(name):
        raise SourceError(f"{origin}: expected a folder at {name}, found none; check the path")
    if not name.startswith("/") and os.path.isdir(name):  # the library would take the folder
        raise SourceError(f"{origin}: expected a dataset of the hub, found a folder of this name; write hf:./{name}")
    datasets.disable_progress_bars()
    try:
        if any(os.path.exists(os.path.join(name, saved)) for saved in SAVED):
            return _pick(datasets.load_from_disk(name), split)
        organisation, _, rest = name.partition("/")
        dataset, _, config = rest.partition("/")
        is_hub_config = config and not name.startswith("/")
        path = f"{organisation}/{dataset}" if is_hub_config else name
        settings = {"cache_dir": str(cache / "datasets"), "split": split or None}
        return datasets.load_dataset(path, config if is_hub_config else None, **settings)
    except Exception as error:  # the library has many
        reason = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{origin}: expected a dataset that can be loaded, found this: {type(error).__name__}: {reason};"
            " check name, split and network"
        ) from None


def _pick(found: Any, split: str) -> Any:
    if not split:
        return found
    if isinstance(found, dict) and split in found:
        return found[split]
    splits = ", ".join(found) if isinstance(found, dict) else "a dataset without splits"
    raise ValueError(f"no split {split!r} in {splits}")


def _list_split(rows: Any, origin: str, cache: Path) -> Iterator[DocumentRef]:
    folder = cache_folder(cache, "rows", origin)
    with locked(folder):
        copy = keep(folder, _lines(rows))
    return list_rows(copy, origin)


def _lines(rows: Any) -> Iterator[bytes]:
    """JSON lines in blocks. As Arrow, because media would be decoded else."""
    for table in rows.with_format("arrow").iter(BATCH_ROWS):
        lines = [json.dumps(row, ensure_ascii=False, default=_as_text) for row in table.to_pylist()]
        yield "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


def _as_text(value: Any) -> str | None:
    """Dates and decimals as they are written; bytes are no text."""
    return None if isinstance(value, bytes) else str(value)
