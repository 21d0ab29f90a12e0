"""Text in, the terms of lexical search out: words, stemmed, and identifiers whole as well as in parts.

    map_batches           map_batches map batch
    DataParallelTrainer   dataparalleltrainer data parallel trainer
    torch.nn.Linear       torch.nn.linear torch nn linear
    Dataset.map_batches   dataset.map_batches dataset map_batches map batch
    GKE-1128-B            gke-1128-b gke 1128 b
    機械学習              機械 械学 学習

Chunks and queries are cut by the same rules. Knows nothing of scores, files or databases.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from rag.errors import ConfigError

# fmt: off
LANGUAGES = (
    "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish", "french", "german", "greek",
    "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian", "portuguese",
    "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
)
# fmt: on
NO_LANGUAGE = "none"  # words as they are
TOKENS_VERSION = 2  # raise it when a text's terms change: every index is then built anew

MAX_KNOWN = 500_000  # words remembered: a corpus of random strings must not fill the memory
MAX_TERM_CHARS = 200  # base64 and minified scripts are no words; their beginning still tells them apart

_WORD = re.compile(r"\w+(?:[.\-'’]\w+)*(?:\+\+|#(?!\w))?")
_APOSTROPHE = re.compile("['’]")
_JOINT = re.compile(r"[.\-]")
_PART = re.compile(r"[^\W_]+")
# Where a capital begins a word: fooBar, HTTPServer.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Scripts that put no blanks between words: Thai, Lao, Myanmar, Khmer, kana, Han, and Hangul, whose endings vary.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff]+"
)


class Analyzer:
    """Cuts texts of one language. Keeps what it knows of the words it saw; share one within a thread."""

    def __init__(self, language: str) -> None:
        """Raises ConfigError for a language that is not in LANGUAGES."""
        if language != NO_LANGUAGE and language not in LANGUAGES:
            raise ConfigError(
                f"ingest.language: expected one of {', '.join(LANGUAGES)} or {NO_LANGUAGE}, found {language!r}"
            )
        self.language = language
        self._stem = _stemmer(language)
        self._stop_words = stop_words(language)
        self._known: dict[str, tuple[str, ...]] = {}

    def terms(self, text: str) -> list[str]:
        """In the order of the text, with repetitions; stop words left out."""
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        found: list[str] = []
        for word in _WORD.findall(text):
            terms = self._known.get(word)
            found += self._remember(word) if terms is None else terms
        return found

    def query_terms(self, text: str) -> list[str]:
        """The same; of a query that is nothing but stop words, those."""
        return self.terms(text) or Analyzer(NO_LANGUAGE).terms(text)

    def _remember(self, word: str) -> tuple[str, ...]:
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        terms = self._terms_of(word)
        if len(word) <= MAX_TERM_CHARS:
            self._known[word] = terms
        return terms

    def _terms_of(self, word: str) -> tuple[str, ...]:
        pieces = _APOSTROPHE.split(word)
        if len(pieces) > 1:  # don't, l'avion: the letter beside an apostrophe is no word
            pieces = [piece for piece in pieces if len(piece) > 1]
        terms: list[str] = []
        for piece in pieces:
            start = 0
            for run in _UNSPACED.finditer(piece):
                terms += self._spaced(piece[start : run.start()]) + _bigrams(run.group())
                start = run.end()
            terms += self._spaced(piece[start:])
        return tuple(terms)

    def _spaced(self, piece: str) -> list[str]:
        """Of a word, or of one that is made of several: `map_batches`."""
        parts = [part.lower() for run in _PART.findall(piece) for part in _CAMEL.split(run)]
        whole = piece.lower()
        names = _JOINT.split(piece)  # of which each may be an identifier again
        if len(names) > 1:
            terms = [term for name in names for term in self._spaced(name)]
        else:
            terms = [term for part in parts for term in self._word(part)]
        if not parts or parts == [whole]:
            return terms
        is_name = "".join(parts) == whole or any(not one.isalpha() and one != "-" for one in whole)
        return [whole[:MAX_TERM_CHARS], *terms] if is_name else terms

    def _word(self, word: str) -> list[str]:
        return [] if word in self._stop_words else [self._stem(word[:MAX_TERM_CHARS])]


@cache
def stop_words(language: str) -> frozenset[str]:
    """Words too common to tell texts apart; none for a language that has no list here."""
    from bm25s import stopwords

    name = "EN_PLUS" if language == "english" else language.upper()
    return frozenset(getattr(stopwords, f"STOPWORDS_{name}", ()))


def _stemmer(language: str) -> Callable[[str], str]:
    if language == NO_LANGUAGE:
        return str
    import Stemmer

    stem: Callable[[str], str] = Stemmer.Stemmer(language, 0).stemWord  # its own cache off: ours is in front of it
    return stem


def _bigrams(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]
