import sys

import pytest

from rag.config import load_settings
from rag.errors import SourceError
from rag.ingest.extract import extract
from rag.ingest.sources import list_documents, read_document

FILES = {
    "__init__.py": '''
"""The zoo."""
import os
from os.path import join
from ragzoo._impl import Cat, helper
from ragzoo import loop
from ragzoo.animals import Dog as Hound
__all__ = ["Cat", "join", "Hound", "lost"]
__all__ += ["helper"]
raise RuntimeError("imported")
''',
    "_impl.py": '''
"""Private."""
class Base:
    def walk(self):
        """Walks."""
class Cat(Base):
    r"""A cat \\d."""
    def __init__(self, name: str = "Tom", *, lives: int = 9):
        """Names it."""
    def __call__(self): "Comes."
    def __len__(self): "Skipped."
    def _purr(self): "Skipped."
    def mute(self): pass
    @property
    def age(self) -> int:
        """Its age.

        Note:
            Indented.
        """
    size = 1
    """Not a property."""
def helper(a, b=None, **more) -> bool:
    """Helps."""
def unseen():
    """Not public."""
''',
    "animals.py": '''
"""Animals."""
from ragzoo._impl import unseen
class Dog:
    """A dog."""
    class Tail:
        """Wags."""
def feed():
    """Feeds."""
''',
    "loop.py": "from ragzoo.pool import swim\n",
    "pool.py": "from ragzoo.loop import swim\n__all__ = ['swim']\n",
    "tests/__init__.py": '"""Tests."""\n',
    "test_zoo.py": '"""Tests."""\n',
}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "ragzoo" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def contents(source: str) -> dict[str, str]:
    return {ref.source: (ref.content or b"").decode() for ref in list_documents(source, load_settings())}


def test_objects_are_named_by_their_shortest_public_path_and_nothing_is_imported(zoo):
    assert contents("python:ragzoo") == {
        "python:ragzoo": "ragzoo\n\nThe zoo.",
        "python:ragzoo.Cat": "ragzoo.Cat(name: str = 'Tom', *, lives: int = 9)\n\nA cat \\d.",
        "python:ragzoo.Hound": "ragzoo.Hound\n\nA dog.",
        "python:ragzoo.animals": "ragzoo.animals\n\nAnimals.",
        "python:ragzoo.helper": "ragzoo.helper(a, b=None, **more) -> bool\n\nHelps.",
        "python:ragzoo.Cat.__call__": "ragzoo.Cat.__call__()\n\nComes.",
        "python:ragzoo.Cat.__init__": "ragzoo.Cat.__init__(name: str = 'Tom', *, lives: int = 9)\n\nNames it.",
        "python:ragzoo.Cat.age": "ragzoo.Cat.age\n\nIts age.\n\nNote:\n    Indented.",
        "python:ragzoo.Hound.Tail": "ragzoo.Hound.Tail\n\nWags.",
        "python:ragzoo.animals.feed": "ragzoo.animals.feed()\n\nFeeds.",
    }
    assert "ragzoo" not in sys.modules


def test_a_part_of_a_package_can_be_asked_for(zoo):
    assert list(contents("python:ragzoo.animals")) == [
        "python:ragzoo.animals",
        "python:ragzoo.animals.Dog",
        "python:ragzoo.animals.feed",
        "python:ragzoo.animals.Dog.Tail",
    ]


@pytest.mark.parametrize("package", ["ragzoo.nothing", "ragzoo.lost", "ragzoo..x", "..", "../ragzoo"])
def test_an_unknown_name_is_refused(zoo, package):
    with pytest.raises(SourceError, match="is not installed in this environment; expected an importable name"):
        list_documents(f"python:{package}", load_settings())


def test_map_batches_of_ray_data_is_found_under_its_public_name():
    found = {ref.source: ref for ref in list_documents("python:ray.data", load_settings())}
    (section,) = extract(read_document(found["python:ray.data.Dataset.map_batches"]))
    assert section.source == "python:ray.data.Dataset.map_batches"
    assert section.title == "ray.data.Dataset.map_batches"
    assert section.text.startswith("ray.data.Dataset.map_batches(fn: UserDefinedFunction[DataBatch, DataBatch], *, ")
    assert "batch_size: Union[int, None, Literal['auto']] = None" in section.text
    assert not any(source.startswith("python:ray.data.dataset.Dataset") for source in found)
    assert len(found) > 500
