"""`rag demo`, and how an answer looks on a terminal: text, numbered sources with the sentence found, times."""

from rich.console import Console
from rich.markup import escape

from rag.config import Settings
from rag.generate.answer import QueryAgent, Retrieved, Token
from rag.generate.complete import contextualizer
from rag.generate.extractive import best_sentence
from rag.index.build import ingest
from rag.records import Answer

SOURCES = ("python:ray.data", "python:ray.serve", "python:ray.train")
QUESTION = "What is the default batch_size of Dataset.map_batches?"


def run_demo(out: Console, settings: Settings) -> None:
    """Ingests SOURCES into the configured collection and answers QUESTION."""
    out.print(f"[bold]1. Ingest[/] {' '.join(SOURCES)}")
    report = ingest(SOURCES, settings, contextualize=contextualizer(settings))
    counts = ", ".join(f"{count} {name}" for name, count in report.documents.items())
    out.print(f"   documents: {counts}")
    out.print(f"   {report.chunks_embedded} chunks embedded in {report.seconds:.1f} s")
    out.print(f"\n[bold]2. Ask[/] {QUESTION}\n")
    print_answer(out, QueryAgent(settings=settings), QUESTION)
    out.print("\n[bold]3. Next[/]")
    out.print(f'   rag ask "How do I read Parquet files?" --collection {settings.collection}')
    out.print("   rag ingest YOUR_FOLDER --collection mine")


def print_answer(out: Console, agent: QueryAgent, question: str, stream: bool = True) -> None:
    """Asks and prints; tokens as they come, or the whole at once."""
    answer: Answer | None = None
    for event in agent.events(question):
        if isinstance(event, Token) and stream:
            out.print(event.text, end="", markup=False)
        elif isinstance(event, Retrieved | Token):
            continue
        else:
            answer = event
    assert answer is not None
    if not stream:
        out.print(answer.answer, end="", markup=False)
    out.print("\n")
    cited = {citation.n for citation in answer.citations}
    for n, hit in enumerate(answer.hits, start=1):
        mark = "[green]*[/]" if n in cited else " "
        out.print(f"{mark}[bold]\\[{n}][/] [cyan]{escape(hit.source)}[/]")
        out.print(f"      [dim]{escape(best_sentence(question, hit)[:240])}[/]")
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in answer.timings_ms.items())
    out.print(f"\n[dim]{escape(answer.llm)} ({escape(answer.route)}); {times}[/]")
