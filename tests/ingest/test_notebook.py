import json

import pytest
from samples import notebook

from rag.errors import ExtractionError
from rag.ingest.extract import extract
from rag.ingest.mimes import NOTEBOOK
from rag.records import Document


def sections(text: str) -> list[tuple[str, str, str]]:
    found = extract(Document("file:///study.ipynb", NOTEBOOK, text.encode()))
    return [(section.source.removeprefix("file:///study.ipynb"), section.title, section.text) for section in found]


def test_sections_follow_the_headings_and_code_is_verbatim():
    text = notebook(
        ("markdown", "# Whales\nWhat they eat."),
        ("code", "# no heading\nx = '''\n```\n'''\n", [{"output_type": "stream", "text": ["krill\n", "squid\n"]}]),
        ("markdown", "## Set up\nand\n## Set up\nagain"),
        ("raw", "raw"),
        ("code", "  \n"),
    )
    assert sections(text) == [
        (
            "#Whales",
            "Whales",
            "What they eat.\n\n````python\n# no heading\nx = '''\n```\n'''\n````\n\n```output\nkrill\nsquid\n```",
        ),
        ("#Set-up", "Whales > Set up", "and"),
        ("#Set-up-2", "Whales > Set up", "again\n\nraw"),
    ]


def test_of_outputs_only_text_is_kept_and_little_of_it():
    outputs: list[dict[str, object]] = [
        {"output_type": "display_data", "data": {"image/png": "iVBOR", "text/plain": "<Figure>"}},
        {"output_type": "error", "ename": "ValueError", "evalue": "\x1b[31mno\x1b[0m", "traceback": ["long"]},
        {"output_type": "stream", "text": "x" * 1000},
    ]
    assert sections(notebook(("code", "f()", outputs))) == [
        ("", "study", f"```python\nf()\n```\n\n```output\n<Figure>\nValueError: no\n{'x' * 476}\n…\n```")
    ]


def test_the_format_before_2015_is_read():
    old = {
        "worksheets": [
            {"cells": [{"cell_type": "heading", "level": 1, "source": ["Old"]}, {"cell_type": "code", "input": "1+1"}]}
        ]
    }
    assert sections(json.dumps(old)) == [("#Old", "Old", "```python\n1+1\n```")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "damaged notebook: expected a list of cells, found none"),
        ("[]", "damaged notebook: expected a JSON object"),
        ('{"cells": [', "damaged notebook: its JSON ends in an error"),
        ('{"cells": ' + "[" * 100_000, "damaged notebook: its JSON is nested too deep"),
        ('{"cells": ' + '{"a":' * 5_000, "damaged notebook: its JSON is nested too deep"),
        ('{"cells": [1, {"cell_type": 3, "source": {}}]}', "no text"),
    ],
)
def test_a_notebook_that_cannot_be_read_says_why(text, reason):
    with pytest.raises(ExtractionError) as caught:
        sections(text)
    assert str(caught.value).startswith(reason)
