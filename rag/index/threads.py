"""Threads in which torch computes on one core each: several small jobs at once, where all cores at one job would wait
for each other after every operation."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


class SingleThreads:
    """As many as torch uses in the thread that makes them."""

    def __init__(self) -> None:
        import torch

        self.num = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.num, thread_name_prefix="embed")
        all_are_there = threading.Barrier(self.num)

        def become_single(_: int) -> None:
            # For this thread, and for those that begin before the number is set back.
            torch.set_num_threads(1)
            torch.zeros(1).add(1)
            all_are_there.wait()

        list(self._pool.map(become_single, range(self.num)))
        torch.set_num_threads(self.num)

    def run(self, job: Callable[[Item], object], items: Iterable[Item]) -> None:
        """`job` for each item. Raises what it raises."""
        for _ in self._pool.map(job, items):
            pass
