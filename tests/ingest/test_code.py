import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import ExtractionError
from rag.ingest.code import LANGUAGES
from rag.ingest.extract import extract
from rag.ingest.mimes import mime_of
from rag.records import Document


def sections(name: str, text: str) -> list[tuple[str, str]]:
    """(lines, title) of each section."""
    found = extract(Document(f"file:///src/{name}", mime_of(name), text.encode()))
    lines = text.split("\n")
    for section in found:
        first, _, last = section.source.partition("#L")[2].partition("-L")
        assert section.text == "\n".join(line.rstrip() for line in lines[int(first) - 1 : int(last or first)])
    return [(section.source.partition("#")[2], section.title) for section in found]


def methods(line: str, times: int = 20) -> str:
    """A class of many methods of three lines."""
    return "".join(f"    {line.format(n)}\n        pass\n\n" for n in range(times))


def test_python_is_split_at_its_definitions():
    text = '''"""Doc."""
import os

X = 1

# about f
@cached(
    size=1)
def f(): pass

if X:
    def inner(): pass


class A:
    def g(self):
        return """
def not_me():
"""


async def h(): pass; h()
'''
    assert sections("app.py", text) == [
        ("L1-L4", "app.py"),
        ("L6-L9", "app.py > f"),
        ("L11-L12", "app.py"),
        ("L15-L19", "app.py > A"),
        ("L22", "app.py > h"),
    ]


def test_the_methods_of_a_large_python_class_are_sections():
    text = f'class A:\n    """Doc."""\n\n{methods("def m{}(self):", 21)}\nA()\n'
    found = sections("app.py", text)
    assert found[:3] == [("L1-L2", "app.py > A"), ("L4-L5", "app.py > A.m0"), ("L7-L8", "app.py > A.m1")]
    assert found[-2:] == [("L64-L65", "app.py > A.m20"), ("L68", "app.py")]


def test_python_that_does_not_parse_is_split_by_its_layout():
    text = 'import os\ndef f(:\n    x = """\ntext\n"""\n    return 1\n\nclass A:\n    def g(self): pass\n'
    assert sections("bad.py", text) == [("L1", "bad.py"), ("L2-L6", "bad.py > f"), ("L8-L9", "bad.py > A")]
    assert sections("deep.py", "f = 1\n" * 50 + "(" * 300) == [("L1-L51", "deep.py")]


def test_a_file_with_a_common_name_is_named_with_its_folder():
    assert sections("__init__.py", "x = 1") == [("L1", "src/__init__.py")]


SAMPLES = {
    "a.go": """package main

import (
	"fmt"
)

const raw = `
func not() {
`

// Server serves.
type Server struct {
	a int
}

// Start starts.
func (s *Server) Start(a int) error {
	return nil
}
""",
    "b.ts": """import { a } from "b";

/** Docs
 * more
 */
export const add = (a: number): number => {
  return a;
};

export default class Foo extends Bar {
  x = 1;
}

app.get("/x", (req, res) => {
  res.send(1);
});

export async function load(
  url: string,
): Promise<void> {
  await fetch(url);
}
""",
    "c.cpp": """#include <vector>
#ifdef X
#define Y 1
#endif

int add(int a, int b)
{
#ifdef X
    return a;
#endif
}

struct node *find(int x) {
    return 0;
}

template <typename T>
T Foo<T>::bar(const T& x) const {
    return x;
}

class Q {
public:
    int a() { return 1; }
private:
    int b;
};
""",
    "d.rs": """use std::io;

#[derive(Debug)]
pub struct P<'a> { x: &'a str }

impl<'a> Display for P<'a> {
    fn fmt(&self) -> Result {}
}

pub(crate) async fn go<T: Foo>(x: T) -> u8 {
    let c = '"';
}
""",
    "e.rb": """require "x"

=begin
def no
=end

# A thing
class Thing < Base
  def initialize
  end
end

def self.top(a)
  a
end
""",
    "f.sql": """CREATE TABLE IF NOT EXISTS users (
  id int
);
create or replace function add(a int) returns int as $$
begin
  return 1;
end;
$$ language plpgsql;
INSERT INTO users VALUES (1);
""",
    "g.sh": "set -e\nfoo() {\n  echo 1\n}\nfunction bar {\n  foo\n}\nif true; then\n  bar\nfi\n",
    "h.lua": "local M = {}\n--[[\nfunction no() ]]\nfunction M.a(x)\n  a()\nend\nM.c = function(x)\n  b()\nend\n",
    "i.R": "library(x)\nf <- function(a) {\n  a\n}\ng = function(b)\n{\n  b\n}\n",
    "k.kt": "package x\ndata class P(val a: Int) {\n    fun go() = 1\n}\nfun String.ext(): Int {\n    return 1\n}\n",
    "l.swift": "import X\n@objc class A: B {\n    func x() {}\n}\nextension A: C {\n    func y() {}\n}\n",
    "m.php": "<?php\nuse X;\nabstract class U extends V\n{\n    public $a;\n}\nfunction top($x) {\n    return $x;\n}\n",
    "n.scala": "package a\ncase class P(a: Int)\nobject Main extends App {\n  def x = 1\n}\n",
    "o.cs": "using System;\n\n[Serializable]\npublic class A : B\n{\n    int x;\n}\n",
}
EXPECTED = {
    "a.go": ["L1-L9 ", "L11-L14 Server", "L16-L19 Start"],
    "b.ts": ["L1 ", "L3-L8 add", "L10-L12 Foo", "L14-L16 ", "L18-L22 load"],
    "c.cpp": ["L1-L4 ", "L6-L11 add", "L13-L15 find", "L17-L20 bar", "L22-L27 Q"],
    "d.rs": ["L1 ", "L3-L4 P", "L6-L8 P", "L10-L12 go"],
    "e.rb": ["L1-L5 ", "L7-L11 Thing", "L13-L15 self.top"],
    "f.sql": ["L1-L3 users", "L4-L8 add", "L9 "],
    "g.sh": ["L1 ", "L2-L4 foo", "L5-L7 bar", "L8-L10 "],
    "h.lua": ["L1 ", "L2-L6 M.a", "L7-L9 M.c"],
    "i.R": ["L1 ", "L2-L4 f", "L5-L8 g"],
    "k.kt": ["L1 ", "L2-L4 P", "L5-L7 String.ext"],
    "l.swift": ["L1 ", "L2-L4 A", "L5-L7 A"],
    "m.php": ["L1-L2 ", "L3-L6 U", "L7-L9 top"],
    "n.scala": ["L1 ", "L2 P", "L3-L5 Main"],
    "o.cs": ["L1 ", "L3-L7 A"],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_other_languages_are_split_by_their_layout(name):
    found = sections(name, SAMPLES[name])
    assert [f"{lines} {title.removeprefix(name).removeprefix(' > ')}" for lines, title in found] == EXPECTED[name]


def test_the_methods_of_a_large_class_in_a_namespace_are_sections():
    body = "".join(f"        public int M{n}()\n        {{\n            return {n};\n        }}\n\n" for n in range(15))
    text = f"namespace Acme\n{{\n    public class Tool\n    {{\n        int x;\n\n{body}    }}\n}}\n"
    found = sections("Tool.cs", text)
    assert found[:4] == [
        ("L1-L2", "Tool.cs > Acme"),
        ("L3-L4", "Tool.cs > Acme.Tool"),
        ("L5", "Tool.cs > Acme.Tool"),
        ("L7-L10", "Tool.cs > Acme.Tool.M0"),
    ]
    assert found[-1] == ("L77-L83", "Tool.cs > Acme.Tool.M14")


def test_minified_code_is_refused():
    with pytest.raises(ExtractionError, match="expected source code, found a line of 30000 characters; is it minified"):
        sections("app.js", "a" * 30_000)


CODE = st.lists(
    st.sampled_from(
        [
            "class A:",
            "def f():",
            "  def g(self):",
            "    x = 1",
            "",
            "}",
            "{",
            "/*",
            "*/",
            '"""',
            "'",
            "@d",
            "# c",
            "end",
        ]
        + ["  class B {", "function f() {", "int main(", "`", "--[[", "]]", "\tx", "// c", "namespace n {", "=begin"]
    ),
    max_size=150,
)


@given(CODE, st.sampled_from([*LANGUAGES, "text/x-python"]))
def test_no_line_is_lost_and_none_is_in_two_sections(lines, mime):
    try:
        found = extract(Document("file:///a.x", mime, "\n".join(lines).encode()))
    except ExtractionError as error:
        assert str(error) in ("empty", "no text") and not any(line.strip() for line in lines)
        return
    counted: list[int] = []
    for section in found:
        first, _, last = section.source.partition("#L")[2].partition("-L")
        counted += range(int(first), int(last or first) + 1)
    assert counted == sorted(set(counted))
    assert {number for number, line in enumerate(lines, 1) if line.strip()} <= set(counted)
