"""A file's name in, its MIME type out. Knows nothing of what is in the file."""

from pathlib import PurePosixPath

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
NOTEBOOK = "application/x-ipynb+json"

MIME_OF_SUFFIX = {
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".rst": "text/x-rst",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".pdf": "application/pdf",
    ".docx": DOCX,
    ".docm": DOCX,
    ".pptx": PPTX,
    ".pptm": PPTX,
    ".xlsx": XLSX,
    ".xlsm": XLSX,
    ".epub": "application/epub+zip",
    ".ipynb": NOTEBOOK,
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".ini": "text/x-ini",
    ".cfg": "text/x-ini",
    ".conf": "text/x-ini",
    ".py": "text/x-python",
    ".pyi": "text/x-python",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".cjs": "text/javascript",
    ".jsx": "text/javascript",
    ".ts": "text/x-typescript",
    ".mts": "text/x-typescript",
    ".tsx": "text/x-typescript",
    ".java": "text/x-java",
    ".go": "text/x-go",
    ".rs": "text/x-rust",
    ".c": "text/x-c",
    ".h": "text/x-c",
    ".cc": "text/x-c++",
    ".cpp": "text/x-c++",
    ".cxx": "text/x-c++",
    ".hh": "text/x-c++",
    ".hpp": "text/x-c++",
    ".hxx": "text/x-c++",
    ".cs": "text/x-csharp",
    ".rb": "text/x-ruby",
    ".php": "text/x-php",
    ".swift": "text/x-swift",
    ".kt": "text/x-kotlin",
    ".kts": "text/x-kotlin",
    ".scala": "text/x-scala",
    ".dart": "text/x-dart",
    ".proto": "text/x-protobuf",
    ".sh": "text/x-shellscript",
    ".bash": "text/x-shellscript",
    ".zsh": "text/x-shellscript",
    ".sql": "text/x-sql",
    ".lua": "text/x-lua",
    ".r": "text/x-r",
    ".jl": "text/x-julia",
    ".pl": "text/x-perl",
    ".pm": "text/x-perl",
}
SUPPORTED = ".html .md .rst .txt .pdf .docx .pptx .xlsx .epub .ipynb .csv .json .yaml, source code"  # for messages

# Written by tools for tools: thousands of chunks that answer nothing.
GENERATED = {
    "npm-shrinkwrap.json",
    "package-lock.json",
    "pnpm-lock.yaml",
    "search_index.json",
    "searchindex.js",
}
GENERATED_ENDS = (".min.js", ".min.mjs", ".bundle.js", ".chunk.js")


def mime_of(name: str) -> str:
    """The type of a file by its name, in any case; "" for one that is not read."""
    lower = PurePosixPath(name).name.lower()
    if lower in GENERATED or lower.endswith(GENERATED_ENDS):
        return ""
    return MIME_OF_SUFFIX.get(PurePosixPath(lower).suffix, "")
