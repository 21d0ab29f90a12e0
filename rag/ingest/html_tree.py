"""An HTML text in, its tree out, or why there is none. Knows no tag but for how it nests."""

import re
from collections import Counter

from selectolax.lexbor import LexborHTMLParser, SelectolaxError

from rag.errors import ExtractionError

MAX_DEPTH = 10_000  # the parser's time grows with the square of the depth
MANY_TAGS = 10_000  # fewer cannot be that deep
TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)", re.IGNORECASE)
NEVER_DEEP = {"br", "hr", "img", "input", "link", "meta", "wbr", "col"}  # void
NEVER_DEEP |= {"p", "li", "dt", "dd", "tr", "td", "th", "option"}  # closed by the next of their kind


def parse_html(text: str) -> LexborHTMLParser:
    """ExtractionError for HTML that would keep the parser busy for minutes, MemoryError where there is no room."""
    _refuse_depth(text)
    try:
        return LexborHTMLParser(text)
    except SelectolaxError:  # of any text the parser makes a tree, if only there is room for it
        raise MemoryError from None


def _refuse_depth(text: str) -> None:
    if text.count("<") < MANY_TAGS:
        return
    depth = deepest = 0
    num_open: Counter[str] = Counter()
    for tag in TAG.finditer(text):
        name = tag[2].lower()
        if name in NEVER_DEEP or (tag[1] and not num_open[name]):  # an end tag of nothing is ignored
            continue
        step = -1 if tag[1] else 1
        num_open[name] += step
        depth += step
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ExtractionError(f"expected elements nested at most {MAX_DEPTH} deep, found {deepest}")
