"""What cutting into chunks needs of the embedding model: its tokens, how many it reads, its vectors.

rag.ingest.chunks knows no model; this hands it one. Loads no torch but with the embedder that it is given.
"""

from functools import cache

from rag.config import ChunkConfig, EmbedConfig
from rag.errors import ConfigError
from rag.index.embed import Embedder, context_tokens, load_token_spans
from rag.index.fingerprint import Fingerprint
from rag.ingest.chunks import NO_TOOLS, ChunkTools, chunk_section
from rag.records import Chunk, Section


def check_chunk_size(config: ChunkConfig, embed: EmbedConfig, fingerprint: Fingerprint) -> None:
    """Raises ConfigError for chunks of more tokens than the model reads."""
    if config.method != "tokens":
        return
    room = context_tokens(embed, fingerprint)
    if config.size > room:
        raise ConfigError(
            f"chunk.size: expected at most {room} tokens, which {fingerprint.model} reads of its"
            f" {fingerprint.max_tokens} beside special ones and prefix; found {config.size};"
            f" pass --chunk-size {room} or less"
        )


@cache
def tokenizer_tools(config: ChunkConfig, embed: EmbedConfig, fingerprint: Fingerprint) -> ChunkTools:
    """For a process without the model: the tokenizer, where the method counts tokens."""
    if config.method != "tokens":
        return NO_TOOLS
    return ChunkTools(token_spans=load_token_spans(embed), max_tokens=context_tokens(embed, fingerprint))


def needs_embedder(config: ChunkConfig) -> bool:
    """Whether only a process with the model loaded can cut."""
    return config.method == "semantic"


def chunk_with(embedder: Embedder, sections: list[Section], config: ChunkConfig) -> list[Chunk]:
    """The chunks of a document by a method that needs the embedder."""
    tools = ChunkTools(embed=lambda texts: embedder.embed(texts, "passage"))
    return [chunk for section in sections for chunk in chunk_section(section, config, tools)]
