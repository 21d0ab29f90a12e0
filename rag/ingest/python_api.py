"""An installed package in, one document per public object out: its signature and its docstring.

Read from source by griffe; nothing is imported. An object is named by its shortest public path,
`ray.data.Dataset.map_batches`, wherever it is defined.
"""

import warnings
from collections.abc import Iterator
from functools import cache

import griffe

from rag.errors import SourceError
from rag.records import DocumentRef

MIME = "text/x-python-doc"
SPECIAL_METHODS = {"__init__", "__call__"}
TEST_MODULES = {"test", "tests", "conftest"}


def list_python_objects(package: str) -> Iterator[DocumentRef]:
    """The documented public objects of `package` (`ray.data`), outermost first, then by name; each once."""
    return _walk(package, _find(package))


def _walk(package: str, start: griffe.Object) -> Iterator[DocumentRef]:
    """Breadth first: the first path to an object is its shortest, and of those the first by alphabet."""
    seen: set[str] = set()
    level = [(package, start)]
    while level:
        following = []
        for path, found in sorted(level, key=lambda named: named[0]):
            if found.path not in seen:
                seen.add(found.path)
                following += [(f"{path}.{name}", member) for name, member in _members(found, start.path)]
                if found.docstring and found.docstring.value.strip() and _is_documented_kind(found):
                    yield _to_ref(path, found, found.docstring.value)
        level = following


def _find(package: str) -> griffe.Object:
    top, *names = package.split(".")
    try:
        found = _load(top)
        for name in names:
            member = found.members[name]
            found = member.final_target if isinstance(member, griffe.Alias) else member
        return found
    except (ImportError, KeyError, griffe.GriffeError):
        raise SourceError(
            f"package {package} is not installed in this environment;"
            " expected an importable name such as ray.data; pip install it first"
        ) from None


@cache
def _load(top: str) -> griffe.Object:
    """The whole top-level package: ten seconds for ray, so once in a process."""
    loader = griffe.GriffeLoader(allow_inspection=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of other people's escapes
        package = loader.load(top, try_relative_path=False)
        loader.resolve_aliases(implicit=False, external=False)
    return package.final_target if isinstance(package, griffe.Alias) else package


def _members(owner: griffe.Object, start: str) -> Iterator[tuple[str, griffe.Object]]:
    """The public members of a module or class, aliases resolved."""
    if owner.is_function:
        return
    for name, member in owner.members.items():
        if not _is_public(owner, name, member):
            continue
        if not isinstance(member, griffe.Alias):
            yield name, member
        elif target := _target(member, start if owner.exports is None else start.split(".")[0]):
            yield name, target


def _is_public(owner: griffe.Object, name: str, member: griffe.Object | griffe.Alias) -> bool:
    is_alias = isinstance(member, griffe.Alias)
    if owner.is_class:
        return not is_alias and (name[0] != "_" or name in SPECIAL_METHODS)
    if name[0] == "_" or name in TEST_MODULES or name.startswith("test_"):
        return False
    if not is_alias and member.is_module:
        return True
    if owner.exports is not None:
        return name in owner.exports
    return not is_alias or owner.is_init_module  # elsewhere an import is a tool of the module, no offer


def _target(alias: griffe.Alias, within: str) -> griffe.Object | None:
    """What the alias stands for, if that is in the package `within`; a cycle stands for nothing."""
    try:
        target = alias.final_target
    except griffe.GriffeError:
        return None
    return target if f"{target.path}.".startswith(f"{within}.") else None


def _is_documented_kind(found: griffe.Object) -> bool:
    return not found.is_attribute or "property" in found.labels


def _to_ref(path: str, found: griffe.Object, docstring: str) -> DocumentRef:
    content = f"{_signature(path, found)}\n\n{docstring.strip()}"
    return DocumentRef(f"python:{path}", MIME, content=content.encode("utf-8", "replace"))


def _signature(path: str, found: griffe.Object) -> str:
    """`path(parameters) -> result` on one line; the bare path of what is not called."""
    if not isinstance(found, griffe.Function | griffe.Class):
        return path
    try:
        return " ".join(found.signature(name=path).split()) or path
    except griffe.GriffeError:  # a base class that is not installed
        return path
