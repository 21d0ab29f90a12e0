"""What all commands share: their options, the settings that flags give, an open store, printing, the end."""

import atexit
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from rag.config import Settings, load_settings

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but the end of a line and the tab


def plain(text: str) -> str:
    """`text` for a terminal: a document's own control characters would set its title or its colours."""
    return CONTROL.sub("", text)


class PlainConsole(Console):
    """Prints markup and text, whose control characters it leaves out: colours come from markup alone."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(item) if isinstance(item, str) else item for item in objects), **options)


class PlainFormatter(logging.Formatter):
    """One line a record, as `logging.basicConfig` has it, without the control characters of what it reports."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


out = PlainConsole(highlight=False, soft_wrap=True)

Collection = Annotated[str | None, typer.Option("--collection", "-c", help="Which corpus. [default: default]")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def settings_for(collection: str | None = None, **parts: dict[str, Any] | None) -> Settings:
    """The resolved settings with the flags that were given."""
    overrides: dict[str, Any] = {}
    for name, part in parts.items():
        given = {key: value for key, value in (part or {}).items() if value is not None}
        if given:
            overrides[name] = given
    if collection is not None:
        overrides["collection"] = collection
    return load_settings(**overrides)


@contextmanager
def open_store(settings: Settings) -> Iterator[Any]:
    from rag.index.database import open_database
    from rag.index.store import Store

    store = Store(open_database(settings))
    try:
        yield store
    finally:
        store.close()


def print_json(value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False)
    print(CONTROL.sub(lambda control: f"\\u{ord(control[0]):04x}", text))  # those that JSON leaves as they are


def leave(status: int) -> NoReturn:
    """Ends the process without taking torch apart piece by piece, which takes half a second."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status)
