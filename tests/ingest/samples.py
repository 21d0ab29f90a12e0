"""Small real files, made here: office documents, books, PDFs, notebooks."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = f'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" xmlns:r="{OFFICE}"'
SLIDES = (
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    f' xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="{OFFICE}"'
)
SHEETS = f'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" xmlns:r="{OFFICE}"'
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def zipped(parts: Mapping[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as writer:
        for name, content in parts.items():
            writer.writestr(name, content)
    return archive.getvalue()


def relations(*targets: tuple[str, str, str]) -> str:
    """Of (id, kind, target)."""
    found = "".join(f'<Relationship Id="{i}" Type="{OFFICE}/{kind}" Target="{name}"/>' for i, kind, name in targets)
    return f'<Relationships xmlns="{PACKAGE}/relationships">{found}</Relationships>'


def properties(title: str) -> str:
    return f'<p:coreProperties xmlns:p="p" xmlns:dc="dc"><dc:title>{title}</dc:title></p:coreProperties>'


STYLES = f"""<w:styles {WORD}>
<w:style w:styleId="Title"><w:name w:val="Title"/></w:style>
<w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="H2"><w:name w:val="heading 2"/></w:style>
<w:style w:styleId="Own"><w:name w:val="Our heading"/><w:basedOn w:val="H1"/></w:style>
<w:style w:styleId="Loop"><w:name w:val="a"/><w:basedOn w:val="Loop"/></w:style>
<w:style w:styleId="TOC1"><w:name w:val="toc 1"/></w:style>
<w:style w:styleId="Bullet"><w:name w:val="List Bullet"/>
<w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:style>
</w:styles>"""
NUMBERING = f"""<w:numbering {WORD}>
<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="1"><w:lvl w:ilvl="0"><w:numFmt w:val="decimal"/></w:lvl>
<w:lvl w:ilvl="1"><w:numFmt w:val="lowerLetter"/></w:lvl></w:abstractNum>
<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>
</w:numbering>"""


def paragraph(text: str, style: str = "", properties: str = "") -> str:
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{named}{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def item(text: str, list_id: int, level: int = 0) -> str:
    return paragraph(text, "", f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{list_id}"/></w:numPr>')


def word_table(*rows: Sequence[str]) -> str:
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def docx(body: str, title: str = "", **extra: str | bytes) -> bytes:
    return zipped(docx_parts(body, title) | {name: content for name, content in extra.items()})


def docx_parts(body: str, title: str = "") -> dict[str, str | bytes]:
    return {
        "_rels/.rels": relations(
            ("r1", "officeDocument", "word/document.xml"), ("r2", "core-properties", "docProps/core.xml")
        ),
        "docProps/core.xml": properties(title),
        "word/document.xml": f"<w:document {WORD}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": relations(
            ("r1", "styles", "styles.xml"),
            ("r2", "numbering", "/word/numbering.xml"),
            ("r3", "footnotes", "footnotes.xml"),
        ),
        "word/styles.xml": STYLES,
        "word/numbering.xml": NUMBERING,
        "word/footnotes.xml": f'<w:footnotes {WORD}><w:footnote w:id="7">{paragraph("As of May.")}</w:footnote>'
        "</w:footnotes>",
    }


def shape(text: str, placeholder: str = "") -> str:
    kind = f'<p:nvPr><p:ph type="{placeholder}"/></p:nvPr>' if placeholder else ""
    lines = "".join(
        f'<a:p><a:pPr lvl="{len(line) - len(line.lstrip())}"/><a:r><a:t>{line.strip()}</a:t></a:r></a:p>'
        for line in text.split("\n")
    )
    return f"<p:sp><p:nvSpPr>{kind}</p:nvSpPr><p:txBody>{lines}</p:txBody></p:sp>"


def slide_table(*rows: Sequence[str]) -> str:
    cells = ("".join(f"<a:tc><a:p><a:r><a:t>{cell}</a:t></a:r></a:p></a:tc>" for cell in row) for row in rows)
    return f"<p:graphicFrame><a:tbl>{''.join(f'<a:tr>{row}</a:tr>' for row in cells)}</a:tbl></p:graphicFrame>"


def pptx_parts(slides: Sequence[str], notes: Mapping[int, str], title: str = "") -> dict[str, str | bytes]:
    """The slides lie in the archive in the opposite order: what counts is the order they are shown in."""
    numbers = list(range(len(slides)))
    parts: dict[str, str | bytes] = {
        "_rels/.rels": relations(
            ("r1", "officeDocument", "ppt/presentation.xml"), ("r2", "core-properties", "docProps/core.xml")
        ),
        "docProps/core.xml": properties(title),
        "ppt/presentation.xml": f"<p:presentation {SLIDES}><p:sldIdLst>"
        + "".join(f'<p:sldId id="{256 + n}" r:id="s{n}"/>' for n in numbers)
        + "</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *((f"s{n}", "slide", f"slides/slide{len(slides) - n}.xml") for n in numbers)
        ),
    }
    for number, body in enumerate(slides):
        name = f"slide{len(slides) - number}.xml"
        parts[f"ppt/slides/{name}"] = f"<p:sld {SLIDES}><p:cSld><p:spTree>{body}</p:spTree></p:cSld></p:sld>"
        if number in notes:
            parts[f"ppt/slides/_rels/{name}.rels"] = relations(("n", "notesSlide", f"../notesSlides/{name}"))
            page = shape("17", "sldNum") + shape(notes[number], "body")
            parts[f"ppt/notesSlides/{name}"] = (
                f"<p:notes {SLIDES}><p:cSld><p:spTree>{page}</p:spTree></p:cSld></p:notes>"
            )
    return parts


def rows(*values: Sequence[object]) -> str:
    """Sheet rows; bytes are a cell's own XML, @ in it is its address."""
    lines = []
    for number, row in enumerate(values, 1):
        cells = "".join(_cell(column, number, value) for column, value in zip("ABCDEFGH", row, strict=False))
        lines.append(f'<row r="{number}">{cells}</row>' if cells else "")
    return "".join(lines)


def _cell(column: str, number: int, value: object) -> str:
    if isinstance(value, bytes):
        return value.decode().replace("@", f"{column}{number}")
    if isinstance(value, bool):
        return f'<c r="{column}{number}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{column}{number}"><v>{value}</v></c>'
    return f'<c r="{column}{number}" t="inlineStr"><is><t>{value}</t></is></c>' if value else ""


def xlsx_parts(sheets: Mapping[str, str]) -> dict[str, str | bytes]:
    """Of name -> sheetData. Cell style 1 is a date."""
    numbers = range(1, len(sheets) + 1)
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, 1))
    return {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": relations(("r1", "officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f"<workbook {SHEETS}><sheets>{listed}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": relations(
            *((f"r{n}", "worksheet", f"worksheets/sheet{n}.xml") for n in numbers), ("s", "styles", "styles.xml")
        ),
        "xl/styles.xml": f'<styleSheet {SHEETS}><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs></styleSheet>',
    } | {
        f"xl/worksheets/sheet{n}.xml": f"<worksheet {SHEETS}><sheetData>{body}</sheetData></worksheet>"
        for n, body in enumerate(sheets.values(), 1)
    }


def epub_parts(
    chapters: Mapping[str, str], title: str = "", toc: Mapping[str, str] | None = None
) -> dict[str, str | bytes]:
    """Chapters by file name, in reading order; `toc` is an EPUB 2 table of contents."""
    manifest = "".join(
        f'<item id="c{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    points = "".join(
        f'<navPoint><navLabel><text>{label}</text></navLabel><content src="{name}"/></navPoint>'
        for name, label in (toc or {}).items()
    )
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container><rootfile full-path="OEBPS/book.opf"/></container>',
        "OEBPS/book.opf": f'<package xmlns:dc="d"><metadata><dc:title>{title}</dc:title></metadata><manifest>{manifest}'
        '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
        f"</manifest><spine>{spine}</spine></package>",
        "OEBPS/toc.ncx": f'<!DOCTYPE ncx PUBLIC "x" "http://127.0.0.1:9/x.dtd"><ncx><navMap>{points}</navMap></ncx>',
    } | {f"OEBPS/{name}": body for name, body in chapters.items()}


def notebook(*cells: tuple[str, str] | tuple[str, str, list[dict[str, object]]]) -> str:
    found = [
        {"cell_type": cell[0], "source": cell[1].splitlines(keepends=True), "metadata": {}}
        | ({"outputs": cell[2] if len(cell) > 2 else []} if cell[0] == "code" else {})
        for cell in cells
    ]
    return json.dumps({"cells": found, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4})


def pdf(
    pages: Sequence[str], title: str = "", bookmarks: Sequence[tuple[str, int]] = (), trailer: str = "", count: int = 0
) -> bytes:
    """Pages of lines in Helvetica; a page of "" has no text. `bookmarks` are (title, page from 0)."""
    first_page, num_pages = 6, len(pages)
    kids = " ".join(f"{first_page + 2 * n} 0 R" for n in range(num_pages))
    first_mark = first_page + 2 * num_pages
    outline = f"/First {first_mark} 0 R /Last {first_mark + len(bookmarks) - 1} 0 R" if bookmarks else ""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R /Outlines 5 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count or num_pages} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Title ({title}) >>",
        f"<< /Type /Outlines {outline} >>",
    ]
    for number, page in enumerate(pages):
        lines = "".join(f"({line}) Tj 0 -14 Td " for line in page.split("\n")) if page else ""
        stream = f"BT /F1 12 Tf 72 720 Td {lines}ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {first_page + 2 * number + 1} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    for number, (name, page) in enumerate(bookmarks):
        following = f"/Next {first_mark + number + 1} 0 R" if number + 1 < len(bookmarks) else ""
        objects.append(f"<< /Title ({name}) /Parent 5 0 R /Dest [{first_page + 2 * page} 0 R /Fit] {following} >>")
    content = "%PDF-1.4\n"
    offsets = []
    for number, found in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{found}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"/Size {len(objects) + 1} /Root 1 0 R /Info 4 0 R {trailer}"
    content += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< {end} >>\n"
    return (content + f"startxref\n{content.rindex('xref')}\n%%EOF\n").encode("latin-1")
