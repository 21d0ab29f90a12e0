"""A ranked run in, a file that trec_eval reads out: `qid Q0 docid rank score tag` a line.

Fields end at a blank, so blanks within ids are percent-encoded ("doc 7" is `doc%207`); all else stays as it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from rag.errors import ConfigError
from rag.evaluate.measures import Ranking, ordered_scores


def write_run(path: Path, run: Mapping[str, Ranking], tag: str) -> None:
    """Replaces the file at once. Scores are those that keep trec_eval to our order. Raises ConfigError."""
    aside = path.with_name(f"{path.name}.part")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            for query_id, ranking in run.items():
                for rank, (section_id, score) in enumerate(ordered_scores(ranking).items(), start=1):
                    file.write(f"{field(query_id)} Q0 {field(section_id)} {rank} {score:.9g} {field(tag)}\n")
        aside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: expected a file to write the run to: {error.strerror}; choose another") from None


def check_folder(path: Path) -> None:
    """Raises ConfigError where `path` cannot be written, before hours of work."""
    if not path.parent.is_dir() or path.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise ConfigError(
            f"--run-file {path}: expected a file in a folder that is there, found {found}; choose another"
        )


def run_path(path: Path, mode: str, num_modes: int) -> Path:
    """A file for each mode: run.trec is run.hybrid.trec where there are several."""
    if num_modes == 1:
        return path
    return path.with_name(f"{path.stem}.{re.sub(r'[^A-Za-z0-9._+-]', '_', mode)}{path.suffix}")


def field(text: str) -> str:
    """`text` as one field."""
    return re.sub(r"\s", lambda blank: quote(blank[0]), text)
