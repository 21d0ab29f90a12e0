"""Words and breaks in, readable text out: spaces collapsed, blocks on lines of their own, code exact."""


class Flow:
    """The text of one section as it grows."""

    def __init__(self) -> None:
        self._blocks: list[str] = []  # finished lines and the gaps between them
        self._line: list[str] = []
        self._gap = ""  # line ends due before the next block
        self._bullet = ""
        self._is_after_item = False

    def add(self, words: str) -> None:
        self._line.append(words)

    def end_line(self, gap: str) -> None:
        """Ends the line if `gap` is not empty; the widest gap asked for since the last words wins."""
        if not gap:
            return
        line = " ".join("".join(self._line).split())
        self._line.clear()
        if line:
            self._put(self._bullet + line)
        if not self._bullet:  # a paragraph that opens an item does not part it from the item before
            self._gap = max(self._gap, gap, key=len)

    def begin_item(self) -> None:
        self.end_line("\n")
        if self._is_after_item:  # items stand together
            self._gap = "\n"
        self._bullet = "- "

    def end_item(self) -> None:
        self.end_line("\n")
        self._bullet = ""
        self._is_after_item = True

    def add_verbatim(self, code: str) -> None:
        self.end_line("\n\n")
        if code.strip():
            self._put(code.strip("\n").rstrip())
        self._gap = "\n\n"

    def text(self) -> str:
        self.end_line("\n")
        return "".join(self._blocks)

    def _put(self, block: str) -> None:
        self._blocks += [self._gap, block] if self._blocks else [block]
        self._is_after_item = bool(self._bullet)
        self._gap = self._bullet = ""
