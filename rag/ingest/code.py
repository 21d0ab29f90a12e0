"""Source code in, one section per definition out: `#L10-L42` (GitHub's anchors), titled `app.py > Class.method`.

Python is read by its own parser. Other languages, and Python that does not parse, are read by their layout: a
definition begins at the margin and ends before the next line that does. What lies between definitions (imports,
constants, calls) are sections of their own, titled by the file or the class. No line is lost, none is in two sections.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from rag.errors import ExtractionError
from rag.ingest.outline import cite, heading_path
from rag.records import Section

LARGE_LINES = 60  # a class of so many lines is split into its methods
MAX_LINE_CHARS = 20_000  # more: written by a program for programs
LINE_HEAD_CHARS = 300  # where a definition's name is looked for
MAX_NESTING = 8  # of classes, namespaces and the like
FOLDER_NAMES_IT = {"__init__", "__main__", "index", "main", "mod", "lib", "init"}


@dataclass(frozen=True)
class Block:
    """Lines `start` to `end`, counted from 0, `end` excluded. `name` is "" between definitions."""

    start: int
    end: int
    name: str = ""
    members: tuple["Block", ...] = ()  # together they are all its lines; () for one that is not split


@dataclass(frozen=True)
class Language:
    """What hides the margin: comments and strings of many lines, by how they begin and end."""

    comment: str = "//"
    spans: tuple[tuple[str, str], ...] = (("/*", "*/"),)
    quotes: str = "\"'"


C_LIKE = Language()
LANGUAGES = {
    "text/javascript": Language(spans=(("/*", "*/"), ("`", "`"))),
    "text/x-typescript": Language(spans=(("/*", "*/"), ("`", "`"))),
    "text/x-java": Language(spans=(("/*", "*/"), ('"""', '"""'))),
    "text/x-go": Language(spans=(("/*", "*/"), ("`", "`"))),
    "text/x-rust": Language(quotes='"'),  # ' also begins a lifetime
    "text/x-c": C_LIKE,
    "text/x-c++": C_LIKE,
    "text/x-csharp": Language(spans=(("/*", "*/"), ('"""', '"""'))),
    "text/x-ruby": Language("#", (("\n=begin", "\n=end"),)),
    "text/x-php": C_LIKE,
    "text/x-swift": Language(spans=(("/*", "*/"), ('"""', '"""'))),
    "text/x-kotlin": Language(spans=(("/*", "*/"), ('"""', '"""'))),
    "text/x-scala": Language(spans=(("/*", "*/"), ('"""', '"""'))),
    "text/x-dart": Language(spans=(("/*", "*/"), ('"""', '"""'), ("'''", "'''"))),
    "text/x-protobuf": C_LIKE,
    "text/x-shellscript": Language("#", ()),
    "text/x-sql": Language("--", (("/*", "*/"), ("$$", "$$"))),
    "text/x-lua": Language("--", (("--[[", "]]"), ("[[", "]]"))),
    "text/x-r": Language("#", ()),
    "text/x-julia": Language("#", (("#=", "=#"), ('"""', '"""'))),
    "text/x-perl": Language("#", (("\n=", "\n=cut"),)),
}
PYTHON = Language("#", (('"""', '"""'), ("'''", "'''")))

# Lines at the margin that go on with what is above them: a closing brace, `else`, `public:`, `#endif`.
CLOSERS = re.compile(
    r"[}\])]|\{\s*$|(?:end|else|elsif|elif|catch|finally|done|fi|esac|then|do|EOF)\b"
    r"|(?:public|private|protected)(?:\s+\w+)?\s*:(?!:)|#\s*(?:if|ifdef|ifndef|elif|else|endif|pragma|region|endregion)\b"
)
# And those that go with what is below: decorators, attributes, comments.
ATTACHED = re.compile(r"@\w|#!?\[|\[[A-Z]\w*|template\s*<|/\*|\*")
WORDS_BEFORE = (
    r"(?i:(?:export|default|declare|public|private|protected|internal|static|final|abstract|async|sealed|open|override"
    r"|virtual|inline|unsafe|extern|const|pub(?:\([\w ]+\))?|local|partial|readonly|data|case|implicit|suspend|mutating"
    r"|actual|expect|fileprivate|constexpr|typedef|create|or|replace|unique|materialized|temporary|\"C\")\s+)*"
)
KEYWORDS = (
    r"func|fun|fn|def|class|interface|struct|enum|trait|impl|module|namespace|record|object|protocol|extension|actor"
    r"|mixin|union|type|macro_rules!|message|service|rpc|sub|macro|(?i:function\*?|table|view|procedure|trigger|index)"
)
CONTAINERS = {"class", "interface", "struct", "enum", "trait", "impl", "module", "namespace", "record", "object"}
CONTAINERS |= {"protocol", "extension", "actor", "mixin", "service"}
DEFINED = re.compile(
    rf"{WORDS_BEFORE}({KEYWORDS})(?=[\s(<{{]|$)\s*(?:<[^<>]*>|\([^()]*\))?\s*(?i:if\s+not\s+exists\s+)?([\w$.:\"]+)?(.*)"
)
PREFIX = re.compile(
    r"(?:(?:@\w[\w.]*(?:\([^()]*\))?|#!?\[[^\]]*\]|\[[A-Z][^\]]*\]|template\s*<[^{};]*>)\s*)*"
)  # what is ATTACHED, on the same line
IMPL_FOR = re.compile(r".*\bfor\s+([\w:]+)")
IS_TYPE_OF_FUNCTION = re.compile(r"[\s*&]+[\w:]+\s*\(")  # struct node *find(
ASSIGNED = re.compile(  # const name = (...) =>, name <- function(, name = async x =>
    rf"{WORDS_BEFORE}(?:(?:let|var|val|my)\s+)?([\w$.]+)\s*(?::[^=]+)?(?:=|<-)\s*(?:async\b|function\b|\([^=]*=>|\w+\s*=>|\($)"
)
SIGNATURE = re.compile(r"[\w$~<>\[\],.:*&@?\s]+$")  # what stands before the parenthesis of int ns::name(
LAST_NAME = re.compile(r"[\w$~:]+$")
IS_CALL = re.compile(r"[\"'`]|=>|\bfunction\b|\bfunc\b")  # such in parentheses: app.get("/", () => {
NO_CALLABLES = {"if", "for", "while", "switch", "return", "else", "do", "catch", "foreach", "using", "with", "when"}
NO_CALLABLES |= {
    "sizeof",
    "require",
    "unless",
    "until",
    "match",
    "lock",
    "assert",
    "print",
    "case",
    "new",
    "await",
    "import",
    "var",
}


def split_python(text: str, source: str) -> list[Section]:
    """Sections of a Python module; one with errors in its syntax is read by its layout."""
    lines = text.split("\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of other people's escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return split_code(text, source, PYTHON)
    return _sections(lines, _python_blocks(tree.body, lines, 0, len(lines)), source)


def split_code(text: str, source: str, language: Language) -> list[Section]:
    """Sections of a source file in a language that is told by its layout."""
    lines = text.split("\n")
    longest = max(map(len, lines))
    if longest > MAX_LINE_CHARS and longest * 2 > len(text):
        raise ExtractionError(f"expected source code, found a line of {longest} characters; is it minified?")
    indents = _indents(text, lines, language)
    return _sections(lines, list(_Layout(lines, indents, language.comment).blocks(0, len(lines))), source)


def _sections(lines: list[str], blocks: list[Block], source: str) -> list[Section]:
    path = PurePosixPath(unquote(urlsplit(source).path))
    name = "/".join(path.parts[-2:]) if path.stem in FOLDER_NAMES_IT else path.name
    return list(_walk(lines, blocks, source, name.strip("/"), ""))


def _walk(lines: list[str], blocks: list[Block], source: str, file: str, outer: str) -> Iterator[Section]:
    for block in blocks:
        name = ".".join(part for part in (outer, block.name) if part)
        if block.members:
            yield from _walk(lines, list(block.members), source, file, name)
            continue
        start, end = block.start, block.end
        while start < end and not lines[start].strip():
            start += 1
        while start < end and not lines[end - 1].strip():
            end -= 1
        if start < end:
            anchor = f"L{start + 1}-L{end}" if end - start > 1 else f"L{end}"
            text = "\n".join(line.rstrip() for line in lines[start:end])
            yield Section(cite(source, anchor), heading_path([file, name]), text)


# Python


def _python_blocks(body: list[ast.stmt], lines: list[str], start: int, end: int) -> list[Block]:
    """The lines from `start` to `end`, whose statements are `body`."""
    blocks: list[Block] = []
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        first = _with_comments(lines, first, start)
        last = max(node.end_lineno or node.lineno, first + 1)
        if first < start:  # two on one line, parted by a semicolon
            continue
        if first > start:
            blocks.append(Block(start, first))
        is_split = isinstance(node, ast.ClassDef) and last - first > LARGE_LINES
        members = tuple(_python_blocks(node.body, lines, first, last)) if is_split else ()
        blocks.append(Block(first, last, node.name, members))
        start = last
    if start < end:
        blocks.append(Block(start, end))
    return blocks


def _with_comments(lines: list[str], first: int, floor: int) -> int:
    """Where the comments begin that stand directly over a definition."""
    while first > floor and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first


# Other languages


def _indents(text: str, lines: list[str], language: Language) -> list[int | None]:
    """The indentation of each line; None for one that is blank or begins inside a comment or a string."""
    indents: list[int | None] = []
    inside = set(_lines_inside(text, language))
    for number, line in enumerate(lines):
        bare = line.expandtabs(4).lstrip()
        indents.append(None if not bare or number in inside else len(line.expandtabs(4)) - len(bare))
    return indents


def _lines_inside(text: str, language: Language) -> Iterator[int]:
    """The lines that begin within a comment or string of many lines."""
    spans = dict(language.spans)
    quoted = [rf"{quote}(?:[^{quote}\\\n]|\\.)*{quote}?" for quote in language.quotes]
    opening = re.compile("|".join([*map(re.escape, spans), *quoted, re.escape(language.comment) + "[^\n]*"]))
    position = line = counted = 0
    while found := opening.search(text, position):
        position = found.end()
        if found[0] not in spans:
            continue
        closing = text.find(spans[found[0]], position)
        position = len(text) if closing < 0 else closing + len(spans[found[0]])
        line += text.count("\n", counted, found.start())
        last = line + text.count("\n", found.start(), position)
        yield from range(line + 1, last + 1)
        line, counted = last, position


@dataclass(frozen=True)
class _Layout:
    lines: list[str]
    indents: list[int | None]
    comment: str

    def blocks(self, start: int, end: int, nesting: int = 0) -> Iterator[Block]:
        """The lines from `start` to `end`, split where a line stands at their margin."""
        rest = start  # where the lines begin that belong to no definition
        attached = None  # where the comments and decorators of the next definition begin
        heads = self._heads(start, end)
        for head, following in zip(heads, [*heads[1:], end], strict=False):
            name, is_container = _definition(self.lines, head, following)
            if name:
                first = head if attached is None else attached
                if rest < first:
                    yield Block(rest, first)
                is_split = is_container and following - first > LARGE_LINES and nesting < MAX_NESTING
                yield Block(first, following, name, self._members(first, head, following, nesting) if is_split else ())
                rest = following
            is_attached = not name and following < end and self._is_attached(head)
            is_alone = not self.lines[following - 1].strip()  # a comment before a blank line
            attached = None if not is_attached or is_alone else head if attached is None else attached
        if rest < end:
            yield Block(rest, end)

    def _heads(self, start: int, end: int) -> list[int]:
        """The lines at the margin where something new begins."""
        indents = {
            number: indent
            for number, indent in enumerate(self.indents[start:end], start)
            if indent is not None and not CLOSERS.match(self.lines[number].lstrip())
        }
        margin = min(indents.values(), default=0)
        return [number for number, indent in indents.items() if indent == margin]

    def _is_attached(self, head: int) -> bool:
        line = self.lines[head].lstrip()
        return line.startswith(self.comment) or ATTACHED.match(line) is not None

    def _members(self, first: int, head: int, end: int, nesting: int) -> tuple[Block, ...]:
        """What a large class consists of: its head, then its members."""
        margin = self.indents[head] or 0
        inner = [number for number in range(head + 1, end) if (self.indents[number] or 0) > margin]
        if not inner:
            return ()
        *members, last = self.blocks(inner[0], inner[-1] + 1, nesting + 1)
        return (Block(first, inner[0]), *members, _ending_at(last, end))


def _ending_at(block: Block, end: int) -> Block:
    """The block and what follows up to `end`: closing braces."""
    *members, last = block.members or (None,)
    return replace(block, end=end, members=(*members, _ending_at(last, end)) if last else ())


def _definition(lines: list[str], head: int, end: int) -> tuple[str, bool]:
    """(name, whether it may hold other definitions) of what begins at the line `head`; "" for no definition."""
    line = lines[head].strip()[:LINE_HEAD_CHARS]
    prefix = PREFIX.match(line)
    line = line[prefix.end() :] if prefix else line
    if found := DEFINED.match(line):
        keyword, name, after = found[1], (found[2] or "").strip('":'), found[3]
        if keyword in ("struct", "enum", "union") and IS_TYPE_OF_FUNCTION.match(after):
            return _callable(line), False
        implemented = IMPL_FOR.match(after) if keyword == "impl" else None
        return implemented[1] if implemented else name, keyword in CONTAINERS
    if found := ASSIGNED.match(line):
        return found[1], False
    is_callable = end - head > 1 and not line.endswith((";", ","))
    return _callable(line) if is_callable else "", False


def _callable(line: str) -> str:
    """`main` of `int main(int argc, char **argv)`; "" for what is no function's head."""
    before, parenthesis, inside = line.partition("(")
    before = before.rstrip()
    name = LAST_NAME.search(before) if parenthesis and SIGNATURE.match(before) else None
    if not name or IS_CALL.search(inside) or not NO_CALLABLES.isdisjoint(before.split()):
        return ""
    return name[0].replace("::", ".").strip(".:")
