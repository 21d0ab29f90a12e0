"""What a language model replied, made usable: plain text of bounded length, or nothing. Knows no model and no prompt.

Small models preface, refuse, number, quote, loop, or answer in JSON. What cannot be used is "", and never an error:
whoever asked goes on without it.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from rag.records import Message

Complete = Callable[[list[Message]], str]  # messages in, the whole reply out; may raise

MAX_REPLY_CHARS = 20_000  # more was not asked for: the model loops, or the endpoint is not one
MAX_JSON_DEPTH = 4
LOOP_WORDS, LOOP_SHARE = 30, 0.2  # of so many words so few are distinct: the model repeats itself
BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder the text around them

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"^[ \t]*```.*?(^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```.*$", re.MULTILINE)
_BULLET = re.compile(r"^(?:[-*•–]|\(?\d{1,3}[.):])\s+")
_LABEL = re.compile(
    r"^(?:(?:final|standalone|stand-alone|rewritten|rephrased|search|hypothetical|short|alternative)\s+)*"
    r"(?:query|question|passage|context|answer|output|reply|paraphrase|rewrite)\s*\d*\s*:\s*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:i'?m (?:very )?sorry|sorry,|i apologi[sz]e|as an? (?:ai|artificial|(?:large )?language model)|i'?m an ai"
    r"|i (?:cannot|can'?t|can not|won'?t|am unable to|am not able to) (?:help|assist|answer|provide|rewrite|rephrase"
    r"|fulfil|fulfill|comply|do that|generate|create|access|see|find|determine)"
    r"|i'?m (?:unable|not able) to|i (?:do not|don'?t) (?:have|know|understand)|unfortunately, i\b)",
    re.IGNORECASE,
)
_NOTHING = {"none", "null", "n/a", "na", "nil", "unknown", "undefined", "not applicable"}


def usable_lines(reply: object) -> list[str]:
    """The reply's lines without numbers, bullets, labels, quotes and prefaces; none where it is refused or garbage."""
    text = _plain(reply)
    if not text or _is_refusal(text):
        return []
    lines = _strings(text) if text[0] in "[{" else text.split("\n")
    bare = (_bare(line) for line in lines)
    return [line for line in bare if _says_something(line)]


def usable_text(reply: object) -> str:
    """The reply as one line of text; "" where nothing of it can be used."""
    text = " ".join(usable_lines(reply))
    words = text.lower().split()
    loops = len(words) >= LOOP_WORDS and len(set(words)) < LOOP_SHARE * len(words)
    return "" if loops else text


def shortened(text: str, max_chars: int) -> str:
    """The text up to the last sentence that ends within `max_chars`, else up to the last word."""
    if len(text) <= max_chars:
        return text
    ends = [found.end() for found in re.finditer(r"[.!?。！？](?=\s|$)", text[: max_chars + 1])]
    whole = [end for end in ends if max_chars // 3 <= end <= max_chars]
    if whole:
        return text[: whole[-1]]
    return text[:max_chars].rpartition(" ")[0] or text[:max_chars]


def _plain(reply: object) -> str:
    """Without reasoning, control characters and code: fenced is what nobody asked for, unless all is."""
    if not isinstance(reply, str) or len(reply) > MAX_REPLY_CHARS:
        return ""
    text = _THINKING.sub("", reply.replace("\r\n", "\n").replace("\r", "\n"))
    prose = _FENCED.sub("", text)
    text = prose if prose.strip() else _FENCE.sub("", text)
    return "".join(map(_visible, text)).strip()


def _visible(char: str) -> str:
    """Control characters become spaces; what reorders text and lone surrogates, which no database stores, go."""
    if char == "\n" or char.isprintable():
        return char
    if char in BIDI_CONTROLS or unicodedata.category(char) == "Cs":
        return ""
    return char if unicodedata.category(char) == "Cf" else " "  # joiners within words and emoji stay


def _strings(text: str) -> list[str]:
    """The strings of a JSON value; none where it is not JSON after all."""
    try:
        return _strings_of(json.loads(text), MAX_JSON_DEPTH)
    except (ValueError, RecursionError):
        return []


def _strings_of(value: Any, depth: int) -> list[str]:
    if isinstance(value, str):
        return [" ".join("".join(map(_visible, value)).split())]
    if depth == 0 or not isinstance(value, dict | list):
        return []
    items = value.values() if isinstance(value, dict) else value
    return [text for item in items for text in _strings_of(item, depth - 1)]


def _bare(line: str) -> str:
    line = _BULLET.sub("", " ".join(line.split()))
    line = _LABEL.sub("", line.replace("**", "").strip("`# "))
    return line.strip("\"'“”„«»` ").strip()


def _is_refusal(text: str) -> bool:
    return bool(_REFUSAL.match(text.replace("’", "'").lstrip("\"'“* ")))


def _says_something(line: str) -> bool:
    """Not blank or a rule, not a preface ("Here are three:"), no refusal, not the word for nothing."""
    is_preface = line.endswith((":", "："))
    has_letter = any(char.isalpha() for char in line)
    return has_letter and not is_preface and line.lower().strip(".") not in _NOTHING and not _is_refusal(line)
