"""What a page tells a crawler."""

import pytest

from rag.ingest.web_page import has_asset_suffix, is_asset, page_mime, read_links, read_sitemap

PAGE = "https://d.org/a/b.html"


def test_links_are_read_in_document_order_and_each_once():
    html = (
        "<head><link rel=stylesheet href=/x.css><base href=/base/><base href=/second/></head>"
        "<a href=one>1</a><map><area href='two#x'></map><a href=one#y>1</a><a>none</a><a href>empty</a>"
        "<a href=three rel=nofollow>3</a><a href='mailto:a@b'>m</a><frame src=four><a href='/five'>"
    )
    found = read_links(html, PAGE)
    assert [link.removeprefix("https://d.org") for link in found.links] == ["/base/one", "/base/two", "/five"]
    assert (found.canonical, found.is_noindex, found.is_nofollow) == (None, False, False)


def test_a_page_that_sends_its_reader_on_links_there():
    html = """<meta http-equiv="Refresh" content="0; URL='latest/'"><meta http-equiv=refresh content=5><a href=x>"""
    assert read_links(html, "https://d.org/").links == ("https://d.org/latest/", "https://d.org/x")


def test_frames_of_old_documentation_are_links():
    assert read_links("<frameset><frame src=toc.html><frame src=main.html></frameset>", PAGE).links == (
        "https://d.org/a/toc.html",
        "https://d.org/a/main.html",
    )


@pytest.mark.parametrize(
    ("html", "header", "noindex", "nofollow"),
    [
        ('<meta name="robots" content="noindex">', "", True, False),
        ('<meta name=" Robots" content="INDEX,NOFOLLOW">', "", False, True),
        ('<meta name="robots" content="none">', "", True, True),
        ('<meta name="robots">', "noindex, nofollow", True, True),
        ('<meta name="description" content="noindex">', "max-snippet:5", False, False),
    ],
)
def test_a_page_may_ask_to_be_left_out(html, header, noindex, nofollow):
    found = read_links(html, PAGE, header)
    assert (found.is_noindex, found.is_nofollow) == (noindex, nofollow)


def test_the_first_canonical_link_counts():
    html = '<link rel="alternate" href=x><link rel="CANONICAL" href="../c/#x"><link rel=canonical href=y>'
    assert read_links(html, PAGE).canonical == "https://d.org/c/"
    assert read_links("<link rel=canonical href='javascript:x'>", PAGE).canonical is None


@pytest.mark.parametrize(
    ("kind", "url", "mime"),
    [
        ("text/html; charset=utf-8", "/a", "text/html"),
        ("TEXT/HTML", "/a.md", "text/html"),
        ("text/plain", "/a.md?x=.html", "text/markdown"),
        ("text/plain", "/a.html", "text/plain"),
        ("", "/a.html", "text/html"),
        ("", "/a", ""),
        ("application/octet-stream", "/a.tar", "application/octet-stream"),
    ],
)
def test_the_type_of_a_page(kind, url, mime):
    assert page_mime(kind, f"https://d.org{url}") == mime


def test_assets_are_known_by_suffix_and_type():
    assert [u for u in ("/a.PNG", "/b.css?x", "/c.html", "/d", "/e.tar.gz", "/f?x=.png") if has_asset_suffix(u)] == [
        "/a.PNG",
        "/b.css?x",
        "/e.tar.gz",
    ]
    kinds = ["image/png", "text/css", "application/ld+json", "application/zip", "application/atom+xml", "font/woff2"]
    documents = ["application/msword", "application/pdf", "text/html", "application/vnd.oasis.opendocument.text"]
    assert [kind for kind in kinds + documents if is_asset(kind)] == kinds


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not xml",
        b'<!DOCTYPE a [<!ENTITY x "y">]><urlset><url><loc>&x;</loc></url></urlset>',
        '<!DOCTYPE a [<!ENTITY x "y">]><urlset><url><loc>&x;</loc></url></urlset>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="no-such"?><urlset/>',
    ],
)
def test_what_is_no_plain_sitemap_is_refused(content):
    with pytest.raises(ValueError, match="no sitemap"):
        read_sitemap(content)


def test_a_sitemap_names_pages_and_not_their_images():
    content = b"""<urlset xmlns="s" xmlns:i="i"><url><loc>/a</loc><i:image><i:loc>/x</i:loc></i:image></url>
        <url><i:loc>/y</i:loc><lastmod>2025</lastmod><loc> /b </loc></url><url><loc/></url></urlset>"""
    assert read_sitemap(content) == (["/a", "/b"], False)
