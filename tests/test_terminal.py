import io
import json
import logging

import pytest

from rag import terminal
from rag.terminal import PlainConsole, PlainFormatter, plain, print_json

EVIL = "a\x1b]0;title\x07\x1b[31mb\x9bc\r\x7f\td\ne"
TAME = "a]0;title[31mbc\td\ne"


def test_what_is_printed_for_a_terminal_has_no_control_characters_of_others():
    assert plain(EVIL) == TAME
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard", highlight=False)
    console.print(f"[red]{EVIL}[/]", end="")
    assert "\x1b[31ma]0;title[31mbc" in console.file.getvalue() and "\x07" not in console.file.getvalue()
    console.print(EVIL, markup=False, end="")
    assert "\x9b" not in console.file.getvalue()
    assert type(terminal.out) is PlainConsole


def test_a_log_record_has_none_either():
    record = logging.LogRecord("rag", logging.WARNING, "", 1, "%s", (EVIL,), None)
    assert PlainFormatter("%(message)s").format(record) == TAME


def test_json_escapes_those_it_may_leave(capsys: pytest.CaptureFixture[str]):
    print_json({"text": EVIL})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"text": EVIL}
    assert plain(printed) == printed
