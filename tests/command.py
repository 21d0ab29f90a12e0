"""The `rag` command as a user runs it: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def rag(*args: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rag.cli", *args],
        env=os.environ | {"RAG_HOME": str(home), "NO_COLOR": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
