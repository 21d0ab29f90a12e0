"""A ZIP archive in, the parts asked for out, as bytes or as a tree of XML. Nothing is written to disk.

What is unpacked is counted, so a bomb ends as an ExtractionError. An archive inside an archive is never opened.
XML: names without namespaces (`p`, `val`; relationship ids keep theirs as `r:id`); no entities, no network.
"""

import io
import posixpath
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from rag.errors import ExtractionError

MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 256 * 2**20  # of all parts read, together
MAX_RATIO = 200  # unpacked to packed; XML of office files has 10 to 60
RATIO_COUNTS_FROM = 2**20  # a small part may be all zeros
MAX_DEPTH = 256  # of XML elements
READ_BYTES = 2**20


class Archive:
    """The parts of an archive by name. `kind` names the format in reasons: DOCX, EPUB."""

    def __init__(self, content: bytes, kind: str) -> None:
        self.kind = kind
        self.num_unpacked = 0
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
        except Exception as error:  # zipfile fails in many ways on bytes that are not its own
            raise ExtractionError(f"damaged {kind}: {error}") from None
        self._entries = {entry.filename: entry for entry in self._zip.infolist()}
        if len(self._zip.filelist) > MAX_ENTRIES:
            raise ExtractionError(f"expected at most {MAX_ENTRIES} entries, found {len(self._zip.filelist)}")

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def read(self, name: str) -> bytes:
        """The bytes of a part. ExtractionError for one that is missing, damaged, encrypted or too large."""
        entry = self._entries.get(name)
        if entry is None:
            raise ExtractionError(f"damaged {self.kind}: {name} is missing")
        if entry.flag_bits & 1:
            raise ExtractionError(f"encrypted: {name} needs a password; save the document without one")
        self._refuse_bomb(entry.file_size, entry.compress_size, name)
        unpacked = io.BytesIO()
        try:
            with self._zip.open(entry) as part:
                while piece := part.read(READ_BYTES):  # its declared size may lie
                    unpacked.write(piece)
                    self.num_unpacked += len(piece)
                    self._refuse_bomb(0, 1, name)
        except ExtractionError:
            raise
        except Exception as error:
            raise ExtractionError(f"damaged {self.kind}: {name}: {error or type(error).__name__}") from None
        return unpacked.getvalue()

    def _refuse_bomb(self, num_bytes: int, num_packed: int, name: str) -> None:
        if self.num_unpacked + num_bytes > MAX_UNPACKED_BYTES:
            raise ExtractionError(f"expected at most {MAX_UNPACKED_BYTES} bytes unpacked, found more in {name}")
        if num_bytes > RATIO_COUNTS_FROM and num_bytes > MAX_RATIO * num_packed:
            ratio = num_bytes // max(1, num_packed)
            raise ExtractionError(f"expected parts packed at most {MAX_RATIO}:1, found {ratio}:1 in {name}")

    def xml(self, name: str) -> Element:
        """The root element of a part."""
        return parse_xml(self.read(name), f"{self.kind}: {name}")

    def find_xml(self, name: str) -> Element:
        """As `xml`; an empty element where there is no such part."""
        return self.xml(name) if name in self._entries else Element("none")


def parse_xml(content: bytes, name: str) -> Element:
    """The tree of an XML text, refusing what makes XML dangerous: declared entities and depth."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ExtractionError(f"expected elements nested at most {MAX_DEPTH} deep, found more in {name}")
        builder.start(_local(tag), {_local(key): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(tag))

    def refuse_entity(*_: object) -> None:
        raise ExtractionError(f"declares XML entities, which are not read: {name}")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse_entity
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise ExtractionError(f"damaged {name}: {error}") from None


@lru_cache(1024)
def _local(name: str) -> str:
    uri, _, local = name.rpartition(" ")
    return f"r:{local}" if uri.endswith("/relationships") else local


# Office files: parts that point at each other


@dataclass(frozen=True)
class Relation:
    kind: str  # "slide", "notesSlide", "styles": the last word of its URI
    target: str  # a part's name


def relations(archive: Archive, part: str) -> dict[str, Relation]:
    """What a part points at inside the archive, by id; of the whole archive for the part ""."""
    folder, name = posixpath.split(part)
    found = {}
    for relation in archive.find_xml(posixpath.join(folder, "_rels", f"{name}.rels")):
        target = relation.get("Target", "")
        if relation.get("TargetMode") != "External" and target:
            path = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
            found[relation.get("Id", "")] = Relation(relation.get("Type", "").rpartition("/")[2], path)
    return found


def target_of(found: Mapping[str, Relation], kind: str) -> str:
    """The first part of that kind; "" without one."""
    return next((relation.target for relation in found.values() if relation.kind == kind), "")


def main_part(archive: Archive) -> str:
    part = target_of(relations(archive, ""), "officeDocument")
    if not part:
        raise ExtractionError(f"damaged {archive.kind}: it names no main part")
    return part


def document_title(archive: Archive) -> str:
    """The title in the document's properties; "" where nobody set one."""
    properties = archive.find_xml(target_of(relations(archive, ""), "core-properties") or "docProps/core.xml")
    return clean_title(properties.findtext("title") or "")


def clean_title(title: str) -> str:
    """ "" for what programs write where nobody gave a title."""
    title = " ".join(title.split()).removeprefix("Microsoft Word - ").removeprefix("Microsoft PowerPoint - ")
    return "" if title.lower() in NO_TITLES else title


NO_TITLES = {"untitled", "powerpoint presentation", "presentation", "document", "document1", "word document"}
