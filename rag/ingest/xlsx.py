"""XLSX in, one section per sheet out: `#sheet=Name`, of a long sheet one per thousand rows, `&rows=1001-2000`.

Cells are the values that the program saved last; a formula that was never computed is empty. Hidden sheets count.
"""

import datetime
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from rag.errors import ExtractionError
from rag.ingest.archive import Archive
from rag.ingest.outline import file_stem, heading_path
from rag.ingest.tables import group_blocks, table_blocks
from rag.records import Section


def split_xlsx(content: bytes, source: str) -> list[Section]:
    """The sheets that have cells, in the workbook's order."""
    import python_calamine as calamine

    archive = Archive(content, "XLSX")
    for name in archive.names:  # calamine unpacks them without counting
        if name.endswith((".xml", ".rels")):
            archive.read(name)
    del archive
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
        sheets = [about.name for about in workbook.sheets_metadata if about.typ == calamine.SheetTypeEnum.WorkSheet]
        return [section for name in sheets for section in _split_sheet(workbook.get_sheet_by_name(name), source)]
    except (calamine.CalamineError, OSError, ValueError) as error:
        raise ExtractionError(f"damaged XLSX: {error}") from None


def _split_sheet(sheet: Any, source: str) -> Iterator[Section]:
    # a stray cell at the end of a sheet means a million empty rows: they must cost nothing
    filled = ([] if row.count("") == len(row) else [_cell(value) for value in row] for row in sheet.iter_rows())
    rows = enumerate(filled, 1)
    parts = list(group_blocks(table_blocks(rows)))
    title = heading_path([file_stem(source), sheet.name])
    for part in parts:
        anchor = f"sheet={quote(sheet.name, safe='')}"
        if len(parts) > 1:
            anchor += f"&rows={part.first}-{part.last}"
        yield Section(f"{source}#{anchor}", title, part.text)


def _cell(value: object) -> str:
    """A number as one writes it, 3 not 3.0; a date as 2024-05-01."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "minutes" if value.second == 0 else "seconds").removesuffix(" 00:00")
    return str(value)
