"""Every error a user can meet: one line that says what was expected, what was found and what to do.

RagError
├── ConfigError        a setting that cannot be used
├── SourceError        nothing to read where the user pointed
├── ExtractionError    one document that could not be read (goes to the ledger; the job goes on)
├── DumpError          a dump that cannot be written or loaded
├── DatabaseError      no PostgreSQL, or one that cannot be used
├── NotFound           no such collection or generation
├── NotAllowed         what an index generation's state forbids: the live one is not dropped
├── IndexMismatch      the query's embedder is not the one the index was built with
├── ModelError         a model that cannot be loaded
├── ResourceError      the job needs more than the cluster has
├── Overloaded         too many requests wait already; come back later
└── GenerationError    the LLM gave no answer
"""


class RagError(Exception):
    """Base of all errors this package raises on purpose."""


class ConfigError(RagError):
    """A setting that cannot be used."""


class SourceError(RagError):
    """Nothing to read where the user pointed."""


class ExtractionError(RagError):
    """One document that could not be read; its text is the reason in the ledger."""


class DumpError(RagError):
    """A dump that cannot be written or loaded."""


class DatabaseError(RagError):
    """No PostgreSQL, or one that cannot be used."""


class NotFound(RagError):
    """No such collection or generation."""


class NotAllowed(RagError):
    """What an index generation's state forbids: the live one is not dropped, an unfinished one not made live."""


class IndexMismatch(RagError):
    """The query's embedder is not the one the index was built with."""


class ModelError(RagError):
    """A model that cannot be loaded."""


class ResourceError(RagError):
    """The job needs more than the cluster has."""


class Overloaded(RagError):
    """Too many requests wait already; come back later."""


class GenerationError(RagError):
    """The LLM gave no answer."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the lines that explain it to its own users."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
