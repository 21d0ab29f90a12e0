"""How far and how long: a bar on a terminal, a line every few seconds elsewhere. Always on standard error."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

EVERY_S = 5.0  # between two lines


class Progress:
    """`with Progress("ingest", total=500, unit="documents") as progress: progress.update(3)`"""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.num_done = 0
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=label, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def update(self, n: int) -> None:
        self.num_done += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() - self.last_line >= EVERY_S:
            self.last_line = time.monotonic()
            self._line()

    def _line(self) -> None:
        elapsed = time.monotonic() - self.started
        total: Any = self.total  # tqdm takes None for an unknown one, its type stubs do not
        meter = tqdm.format_meter(self.num_done, total, elapsed, unit=f" {self.unit}", ncols=0)
        print(f"{self.label}: {meter}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.num_done:
            self._line()
