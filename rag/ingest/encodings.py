"""The name of an encoding as pages declare it in, Python's name for it out. Knows no page and no content."""

import codecs

# Encodings of Python that no page has, some with a decoder slow enough to stop a crawl.
NOT_OF_PAGES = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined"}
# Browsers take each of these for the last, as do the people who write them.
LATIN = {"iso8859-1", "ascii", "cp1252"}


def codec(declared: str) -> str:
    """ "iso8859-1" of "Latin-1"; "" for what is no encoding of texts, or of no page."""
    try:
        b" ".decode(declared, "replace")  # refuses those that make bytes of bytes
        name = codecs.lookup(declared).name
    except (LookupError, ValueError):  # anything may be declared
        return ""
    return "" if name in NOT_OF_PAGES else name
