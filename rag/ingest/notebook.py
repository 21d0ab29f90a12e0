"""A Jupyter notebook in, sections out: by the headings of its Markdown cells, cited as Jupyter does, `#Set-up`.

Code cells are verbatim, in fences; of their outputs only text is kept, and not much of it.
"""

import json
import re
from typing import Any

from rag.errors import ExtractionError
from rag.ingest.markdown import find_headings
from rag.ingest.outline import Heading, split_at_headings
from rag.records import Section

OUTPUT_CHARS = 500  # of a cell
OUTPUT_LINES = 12
TERMINAL_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FENCE = re.compile(r"`{3,}")


def split_notebook(text: str, source: str) -> list[Section]:
    """Sections of a notebook, nbformat 3 and 4."""
    notebook = _load(text)
    language = _language(notebook)
    lines: list[str] = []
    headings: list[Heading] = []
    for cell in _cells(notebook):
        content = _joined(cell.get("source", cell.get("input")))
        if cell.get("cell_type") == "markdown":
            headings += _headings(content, len(lines))
            lines += [*content.split("\n"), ""]
        elif cell.get("cell_type") == "heading":  # of nbformat 3
            level, title = cell.get("level"), " ".join(content.split())
            start, level = len(lines), level if isinstance(level, int) else 1
            headings.append(Heading(level, title, _anchor(title), start, start + 1))
            lines += [title, ""]
        elif cell.get("cell_type") == "code" and content.strip():
            lines += [*_fenced(content, language), "", *_output(cell)]
        elif content.strip():
            lines += [*content.split("\n"), ""]
    return split_at_headings(lines, headings, source)


def _load(text: str) -> dict[str, Any]:
    try:
        notebook = json.loads(text)
    except RecursionError:
        raise ExtractionError("damaged notebook: its JSON is nested too deep") from None
    except ValueError as error:
        raise ExtractionError(f"damaged notebook: its JSON ends in an error: {error}") from None
    if not isinstance(notebook, dict):
        raise ExtractionError("damaged notebook: expected a JSON object")
    return notebook


def _cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    sheets = notebook.get("worksheets")
    first = sheets[0] if isinstance(sheets, list) and sheets else notebook
    cells = first.get("cells") if isinstance(first, dict) else None
    if not isinstance(cells, list):
        raise ExtractionError("damaged notebook: expected a list of cells, found none")
    return [cell for cell in cells if isinstance(cell, dict)]


def _language(notebook: dict[str, Any]) -> str:
    metadata = notebook.get("metadata")
    info = metadata.get("language_info") if isinstance(metadata, dict) else None
    name = info.get("name") if isinstance(info, dict) else None
    return name if isinstance(name, str) and name.isidentifier() else "python"


def _joined(value: object) -> str:
    """nbformat keeps a text as a string or as a list of lines."""
    parts = value if isinstance(value, list) else [value]
    return "".join(part for part in parts if isinstance(part, str)).replace("\r\n", "\n").replace("\r", "\n")


def _headings(markdown: str, offset: int) -> list[Heading]:
    return [
        Heading(found.level, found.title, _anchor(found.title), found.start + offset, found.end + offset)
        for found in find_headings(markdown)
    ]


def _anchor(title: str) -> str:
    return title.replace(" ", "-")


def _fenced(code: str, language: str) -> list[str]:
    fence = max(["``", *FENCE.findall(code)], key=len) + "`"
    return [fence + language, *code.rstrip().split("\n"), fence]


def _output(cell: dict[str, Any]) -> list[str]:
    outputs = cell.get("outputs")
    found = outputs if isinstance(outputs, list) else []
    texts = [_output_text(output) for output in found if isinstance(output, dict)]
    text = TERMINAL_ESCAPES.sub("", "\n".join(text.rstrip() for text in texts if text.strip()))
    if not text:
        return []
    short = "\n".join(text[:OUTPUT_CHARS].split("\n")[:OUTPUT_LINES])
    return [*_fenced(short if short == text else f"{short.rstrip()}\n…", "output"), ""]


def _output_text(output: dict[str, Any]) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        return f"{_joined(output.get('ename'))}: {_joined(output.get('evalue'))}"
    data = output.get("data")
    return _joined(output.get("text")) or (_joined(data.get("text/plain")) if isinstance(data, dict) else "")
