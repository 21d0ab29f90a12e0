"""A website's documents, from real servers on 127.0.0.1."""

import gzip
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_site import Site

from rag.config import WebConfig
from rag.errors import SourceError
from rag.ingest import visitor, web_sitemaps
from rag.ingest.extract import extract
from rag.ingest.public_net import FetchError
from rag.ingest.sources import is_within, read_document
from rag.ingest.urls import is_below
from rag.ingest.web import crawl, site_root
from rag.ingest.web_fetch import _target
from rag.records import Gap


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(visitor, "BACKOFF_S", 0.01)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def other():
    site = Site()
    yield site
    site.close()


def links(*hrefs: str) -> str:
    return "<p>text " + " ".join(f'<a href="{href}">link</a>' for href in hrefs)


def config(*sites: Site, **settings) -> WebConfig:
    return WebConfig(**{"delay_s": 0, "allow_private": tuple(site.host for site in sites)} | settings)


def crawled(site: Site, folder: Path, start: str = "/", **settings) -> list[str]:
    """Paths of what is listed, `path: reason` where it failed."""
    refs = crawl(site.url + start, config(site, **settings), folder)
    return [ref.source.removeprefix(site.url) + (f": {ref.error}" if ref.error else "") for ref in refs]


# Where it goes


def test_pages_are_listed_breadth_first_in_document_order_each_once(site, tmp_path):
    site.pages |= {
        "/": links("/b", "a/", "/b#part", "mailto:x@y", "/logo.png", "/style.css?v=1"),
        "/b": links("/deep/er/x.html?q=1", "/"),
        "/a/": links("one", "../b", "//elsewhere.example/", "http://127.0.0.1:1/"),
        "/a/one": "<p>one",
        "/deep/er/x.html?q=1": "<p>x",
    }
    assert crawled(site, tmp_path) == ["/", "/b", "/a/", "/deep/er/x.html?q=1", "/a/one"]
    assert site.asked == ["/", "/b", "/a/", "/deep/er/x.html?q=1", "/a/one"]


def test_a_crawl_stays_below_the_folder_it_starts_in(site, tmp_path):
    site.pages |= {
        "/en/latest/index.html": links("/en/latest/a", "/en/stable/a", "/", "/en/latest", "../latest/../x"),
        "/en/latest/a": "<p>a",
        "/en/latest": (301, {"Location": "/en/latest/"}, ""),
        "/en/latest/": "<p>index",
    }
    assert crawled(site, tmp_path, "/en/latest/index.html") == ["/en/latest/index.html", "/en/latest/a", "/en/latest/"]


def test_the_start_may_redirect_to_where_the_site_is_and_other_pages_may_not(site, other, tmp_path):
    site.pages["/docs"] = (302, {"Location": f"{other.url}/docs/"}, "")
    other.pages |= {
        "/docs/": links("a", "away", "/docs/up", f"{site.url}/docs/x"),
        "/docs/a": "<p>a",
        "/docs/away": (302, {"Location": f"{site.url}/docs/"}, ""),
        "/docs/up": (302, {"Location": "/elsewhere"}, ""),
    }
    start = f"{site.url}/docs"
    assert site_root(start, tmp_path) == f"{site.url}/docs/"
    sources = [ref.source for ref in crawl(start, config(site, other), tmp_path)]
    assert sources == [f"{other.url}/docs/", f"{other.url}/docs/a"]
    assert site_root(start, tmp_path) == f"{other.url}/docs/"
    assert all(is_below(source, site_root(start, tmp_path)) for source in sources)
    assert site.asked == ["/docs"]


def test_a_redirected_page_is_listed_where_it_is_and_once(site, tmp_path):
    site.pages |= {
        "/": links("old", "older", "new"),
        "/old": (301, {"Location": "new#x"}, ""),
        "/older": (308, {"Location": f"{site.url}/old"}, ""),
        "/new": "<p>new",
    }
    assert crawled(site, tmp_path) == ["/", "/new"]


def test_redirects_without_end_are_a_failure_of_that_page(site, tmp_path):
    site.pages |= {f"/r{i}": (302, {"Location": f"/r{i + 1}"}, "") for i in range(20)}
    site.pages |= {
        "/": links("a", "r0", "c", "d"),
        "/a": (302, {"Location": "/b"}, ""),
        "/b": (302, {"Location": "/a"}, ""),
        "/c": (302, {}, ""),
        "/d": (302, {"Location": "file:///etc/passwd"}, ""),
    }
    assert crawled(site, tmp_path) == [
        "/",
        f"/a: redirects in a circle, back to {site.url}/a",
        "/r0: expected at most 10 redirects, found more",
        "/c: redirects to nowhere: expected a web page",
        "/d: redirects to file:///etc/passwd: expected a web page",
    ]


def test_a_link_that_cannot_be_an_address_is_none_and_a_redirect_to_one_fails_alone(site, tmp_path):
    site.pages |= {
        "/robots.txt": (200, {}, f"Sitemap: {site.url}/{'é' * 700}"),
        "/": links("/" + "é" * 700, "/r", "/good"),
        "/r": (302, {"Location": "/" + "%" * 1500}, ""),
        "/good": "<p>good",
    }
    shown = "/" + "%" * 199
    assert crawled(site, tmp_path) == ["/", f"/r: redirects to {shown}: expected a web page", "/good"]


def test_hops_are_pages_for_the_limit(site, tmp_path):
    site.pages["/"] = links(*(f"/{n}/0" for n in range(30)))
    for n in range(30):
        site.pages |= {f"/{n}/{hop}": (302, {"Location": f"/{n}/{hop + 1}"}, "") for hop in range(9)}
        site.pages[f"/{n}/9"] = "<p>end"
    crawled(site, tmp_path, max_pages=15)
    assert len(site.asked) == 1 + 2 * 10  # the chain that is begun is gone to its end


def test_no_link_is_looked_at_beyond_a_limit_that_is_on_record(site, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(visitor.Visitor, "may_visit", lambda self, url: not asked.append(url))
    site.pages |= {"/": links(*(f"/{n}" for n in range(100))), "/0": links(*(f"/x{n}" for n in range(100)))}
    crawled(site, tmp_path, max_pages=3)
    assert len(asked) == 3 + 3  # to be fetched; to be enqueued, and the one that told of the limit


def test_rules_for_robots_that_take_all_day_are_a_limit(site, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(visitor, "MAX_WILDCARDS_PER_PAGE", 10)
    site.pages |= {
        "/robots.txt": (200, {}, "User-agent: *\n" + "Disallow: /*q\n" * 20),
        "/": links("/a", *(f"/q{n}" for n in range(100)), "/b"),
        "/a": "<p>a",
        "/b": "<p>b",
    }
    gaps: list[Gap] = []
    refs = list(crawl(site.url + "/", config(site, max_pages=4), tmp_path, gaps))
    assert [ref.source.removeprefix(site.url) for ref in refs] == ["/", "/a"]
    assert [gap.reason for gap in gaps] == ["crawl cut short by too many rules in robots.txt"]


def test_a_token_in_a_redirect_is_not_repeated(site, other, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "rag")
    site.pages |= {
        "/": links("/private", "/login", "/circle", "/busy"),
        "/private": (302, {"Location": f"{other.url}/x?token=s3cret"}, ""),
        "/login": (302, {"Location": "/?token=s3cret"}, ""),
        "/?token=s3cret": (302, {"Location": "https://u:s3cret@[/"}, ""),
        "/circle": (302, {"Location": "/circle?token=s3cret"}, ""),
        "/circle?token=s3cret": (302, {"Location": "/circle?token=s3cret"}, ""),
        "/busy": (302, {"Location": "/busy/?token=s3cret"}, ""),
        "/busy/?token=s3cret": (503, {}, ""),
    }
    gaps: list[Gap] = []
    refs = list(crawl(site.url + "/", config(site), tmp_path, gaps))
    assert len([ref for ref in refs if ref.error]) == 4
    assert "s3cret" not in repr([ref.error for ref in refs]) + repr([gap.reason for gap in gaps]) + caplog.text


def test_https_is_not_left_for_http():
    with pytest.raises(FetchError, match="expected to stay with https"):
        _target("https://d.org/a", "http://d.org/a")


def test_a_redirect_into_the_private_network_is_not_followed_and_reported(site, other, tmp_path):
    places = [other.url, "http://localhost:1/", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:10.0.0.1]/"]
    site.pages["/"] = links(*map(str, range(len(places))), "x")
    for i, place in enumerate(places):
        site.pages[f"/{i}"] = (302, {"Location": place}, "")
    site.pages["/x"] = (302, {"Location": "http://2130706433/"}, "")
    listed = crawled(site, tmp_path)
    assert [line.partition(";")[0] for line in listed[:-1]] == [
        "/",
        f"/0: redirects to {other.url}/",
        "/1: redirects to http://localhost:1/",
        "/2: redirects to http://169.254.169.254/latest/meta-data/",
        "/3: redirects to http://[::ffff:10.0.0.1]/",
    ]
    assert all("expected a public address; if it may be read, put" in line for line in listed[1:-1])
    assert listed[-1] == "/x: redirects to http://2130706433/: expected a web page"
    assert other.requests == []


def test_a_private_start_is_refused_before_any_connection(site, tmp_path):
    for settings in ({}, {"allow_private": ("127.0.0.1:1", "10.0.0.0/8")}):
        with pytest.raises(SourceError, match="127.0.0.1 is at 127.0.0.1: expected a public address"):
            list(crawl(site.url, WebConfig(**settings), tmp_path))
    assert site.requests == []


def test_a_start_that_redirects_into_the_private_network_is_refused(site, other, tmp_path):
    site.pages["/"] = (302, {"Location": other.url}, "")
    with pytest.raises(SourceError, match="expected a public address"):
        crawled(site, tmp_path)
    assert other.requests == []


# Limits


def test_a_limit_stops_at_the_same_pages_each_time_and_warns_once(site, tmp_path, caplog):
    site.pages |= {f"/{i}": links(*(f"/{j}" for j in range(i + 1, 40))) for i in range(40)}
    site.pages["/"] = links("/0")
    for folder in ("a", "b"):
        caplog.clear()
        assert crawled(site, tmp_path / folder, max_pages=5) == ["/", "/0", "/1", "/2", "/3"]
        (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert line == f"{site.url}/: crawl cut short: linked pages beyond web.max_pages=5 were not visited"
    caplog.clear()
    site.pages |= {f"/{i}": links(f"/{i + 1}") for i in range(40)}
    assert crawled(site, tmp_path / "c", max_depth=2) == ["/", "/0", "/1"]
    assert "linked pages beyond web.max_depth=2 were not visited" in caplog.text


def test_traps_of_long_addresses_and_many_parameters_are_not_entered(site, tmp_path):
    site.pages["/"] = links("?a=1&" + "&".join(f"f{i}=1" for i in range(8)), "/" + "a/" * 1000, "?page=2")
    site.pages["/?page=2"] = "<p>2"
    assert crawled(site, tmp_path) == ["/", "/?page=2"]


def test_a_page_too_large_or_too_slow_is_listed_with_the_reason(site, tmp_path):
    site.pages |= {"/": links("big", "slow"), "/big": "x" * 3000}
    site.pages["/slow"] = lambda request: time.sleep(1.5) or "late"
    assert crawled(site, tmp_path, max_bytes=2000, timeout_s=0.5, max_retries=0) == [
        "/",
        "/big: expected at most 2000 bytes, found more; raise web.max_bytes",
        "/slow: no whole reply in 0.5 s",
    ]


# Manners


def test_robots_txt_is_obeyed_by_name(site, tmp_path):
    site.pages |= {
        "/robots.txt": "User-agent: *\nDisallow: /\n\n"
        "User-agent: rag-crawler\nDisallow: /private\nAllow: /private/not\n",
        "/": links("private/a", "private/not", "open"),
        "/private/not": "<p>a",
        "/private/a": "<p>b",
        "/open": (302, {"Location": "/private/b"}, ""),
    }
    assert crawled(site, tmp_path) == ["/", "/private/not"]
    assert site.asked == ["/", "/private/not", "/open"]
    with pytest.raises(SourceError, match="robots.txt forbids it"):
        crawled(site, tmp_path / "other", user_agent="somebody-else")


def test_a_site_whose_robots_txt_fails_is_not_crawled(site, tmp_path):
    site.pages |= {"/": "<p>page", "/robots.txt": (503, {}, "")}
    with pytest.raises(SourceError, match=r"/robots.txt: expected rules .* found: 503 Service Unavailable, 2 times"):
        crawled(site, tmp_path, max_retries=1)
    site.pages["/robots.txt"] = (403, {}, "")
    assert crawled(site, tmp_path) == ["/"]


def test_requests_are_spaced_by_the_longer_of_ours_and_the_site_s_delay(site, tmp_path):
    site.pages |= {"/": links("a", "b"), "/a": "<p>a", "/b": "<p>b"}
    started = time.monotonic()
    crawled(site, tmp_path / "a", delay_s=0.2)
    assert time.monotonic() - started >= 0.6
    site.pages["/robots.txt"] = "User-agent: *\nCrawl-delay: 0.3\n"
    started = time.monotonic()
    crawled(site, tmp_path / "b")
    assert time.monotonic() - started >= 0.9


def test_a_busy_site_is_asked_again_when_it_says(site, tmp_path):
    replies = [(429, {"Retry-After": "1"}, ""), (503, {}, ""), (200, {}, "<p>at last")]
    site.pages |= {"/": links("busy"), "/busy": lambda request: replies.pop(0)}
    started = time.monotonic()
    assert crawled(site, tmp_path) == ["/", "/busy"]
    assert 1 <= time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("3", 3, 3), ("-1", 0, 0), ("999999", 60, 60), ("soon", 0, 0), ("nan", 0, 0), ("", 0, 0)]
    + [("Fri, 31 Dec 2100 23:59:59 GMT", 60, 60), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0)],
)
def test_retry_after_is_seconds_or_a_date_and_capped(value, low, high):
    assert low <= visitor._retry_after_s(value) <= high


def test_pages_say_what_crawlers_may_do_with_them(site, tmp_path):
    site.pages |= {
        "/": links("noindex", "nofollow", "header") + '<a href="/not" rel="noopener NoFollow">x</a>',
        "/noindex": '<meta name="ROBOTS" content="NoIndex">' + links("found"),
        "/nofollow": '<meta name=robots content="index, nofollow">' + links("not"),
        "/header": (200, {"X-Robots-Tag": "none"}, links("not")),
        "/found": "<p>found",
        "/not": "<p>not to be visited",
    }
    assert crawled(site, tmp_path) == ["/", "/nofollow", "/found"]
    assert "/not" not in site.asked


def test_a_page_gives_way_to_its_canonical_one_on_the_same_site(site, tmp_path):
    def page(canonical: str, *hrefs: str) -> str:
        return f'<link rel=canonical href="{canonical}">{links(*hrefs)}'

    site.pages |= {
        "/": page("/", "a?sort=up", "left", "right", "abroad"),
        "/a?sort=up": page("/a", "a?sort=down"),
        "/a?sort=down": page("/a"),
        "/a": page("/a"),
        "/left": page("/right"),  # both name the other: one of them stays
        "/right": page("/left"),
        "/abroad": page("https://elsewhere.example/abroad"),
    }
    assert crawled(site, tmp_path) == ["/", "/a", "/right", "/abroad"]


def test_a_page_that_gave_way_for_nothing_is_listed_itself(site, tmp_path):
    named = {"/a": "/a/", "/b": "/gone", "/c": "/failed", "/d": "/hidden"}
    site.pages |= {path: f'<link rel=canonical href="{canonical}"><p>{path}' for path, canonical in named.items()}
    site.pages |= {
        "/": links("gone", "a", "b", "c", "d"),
        "/a/": (301, {"Location": "/a"}, ""),
        "/failed": (500, {}, ""),
        "/hidden": "<meta name=robots content=noindex>",
    }
    assert crawled(site, tmp_path) == [
        "/",
        "/gone: 404 Not Found",
        "/a",
        "/b",
        "/failed: 500 Internal Server Error",
        "/c",
    ]


def test_a_sitemap_of_the_same_site_adds_pages(site, tmp_path, caplog):
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"

    def xml(kind: str, *places: str) -> str:
        inside = "".join(f"<x><loc> {place} </loc></x>" for place in places)
        return f'<?xml version="1.0" encoding="UTF-8"?><{kind} xmlns="{space}">{inside}</{kind}>'

    site.pages |= {
        "/robots.txt": f"Sitemap: {site.url}/index.xml\nSitemap: /bomb.xml\nSitemap: http://127.0.0.1:1/sitemap.xml\n",
        "/docs/": links("linked"),
        "/docs/linked": "<p>linked",
        "/docs/only": links("deep"),
        "/docs/deep": "<p>deep",
        "/index.xml": (302, {"Location": "/real-index.xml"}, ""),
        "/real-index.xml": xml("sitemapindex", f"{site.url}/pages.xml.gz", "http://127.0.0.1:1/more.xml"),
        "/bomb.xml": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><urlset><url><loc>&a;</loc></url></urlset>',
    }
    places = xml("urlset", f"{site.url}/docs/only", f"{site.url}/outside", f"{site.url}/docs/linked", "http://[")
    site.pages["/pages.xml.gz"] = (200, {"Content-Type": "application/gzip"}, gzip.compress(places.encode()))
    assert crawled(site, tmp_path, "/docs/") == ["/docs/", "/docs/linked", "/docs/only", "/docs/deep"]
    assert "/bomb.xml: expected a sitemap, found: no sitemap" in caplog.text
    site.pages["/pages.xml.gz"] = (500, {}, "")
    assert crawled(site, tmp_path, "/docs/") == ["/docs/", "/docs/linked", "/docs/only", "/docs/deep"]


# What it keeps


def test_the_type_is_the_server_s_or_the_suffix_s(site, tmp_path):
    def typed(kind: str, body: str | bytes = "text"):
        return 200, {"Content-Type": kind}, body

    site.pages |= {
        "/": links("raw.md", "notes", "book", "x", "photo", "feed", "sheet", "guide.rst"),
        "/raw.md": typed("text/plain; charset=utf-8"),
        "/notes": typed("text/plain"),
        "/book": typed("application/pdf", b"%PDF-1.4"),
        "/x": typed("application/xhtml+xml"),
        "/photo": typed("image/png", bytes(10**6)),
        "/feed": typed("application/rss+xml"),
        "/sheet": typed("application/vnd.ms-excel"),
        "/guide.rst": typed("application/octet-stream"),
    }
    refs = list(crawl(site.url, config(site), tmp_path))
    assert [(ref.source.removeprefix(site.url), ref.error or ref.mime) for ref in refs] == [
        ("/", "text/html"),
        ("/raw.md", "text/markdown"),
        ("/notes", "text/plain"),
        ("/book", "application/pdf"),
        ("/x", "text/html"),
        ("/sheet", "expected a document of a supported type, found application/vnd.ms-excel"),
        ("/guide.rst", "text/x-rst"),
    ]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html; charset=koi8-r", "<p>привет".encode("koi8-r")),
        ("text/html;charset='utf-16le'", "<p>привет".encode("utf-16le")),
        ("text/html; charset=iso-8859-1", "<p>привет".encode()),  # what servers claim of everything
        ("text/html; charset=utf-8", "<meta charset=koi8-r><p>привет".encode()),
        ("text/html; charset=koi8-r", b"\xef\xbb\xbf" + "<p>привет".encode()),
        ("text/html; charset=no-such", "<p>привет".encode()),
        ("text/html; charset=punycode", "<p>привет".encode()),
        ("text/html; charset=hex", "<p>привет".encode()),
    ],
)
def test_the_encoding_of_the_header_survives_in_the_cache(site, tmp_path, kind, body):
    site.pages["/"] = (200, {"Content-Type": kind}, body)
    (ref,) = crawl(site.url, config(site), tmp_path)
    assert [section.text for section in extract(read_document(ref))] == ["привет"]


def test_latin_1_is_read_as_browsers_do(site, tmp_path):
    site.pages["/"] = (200, {"Content-Type": "text/html; charset=ISO-8859-1"}, "<p>“déjà vu”".encode("cp1252"))
    (ref,) = crawl(site.url, config(site), tmp_path)
    assert [section.text for section in extract(read_document(ref))] == ["“déjà vu”"]


def test_a_page_nested_without_end_is_listed_and_does_not_stop_the_crawl(site, tmp_path):
    site.pages |= {"/": links("deep", "b"), "/deep": "<div>" * 200_000 + links("c"), "/b": "<p>b"}
    started = time.monotonic()
    assert crawled(site, tmp_path) == ["/", "/deep", "/b"]
    assert time.monotonic() - started < 10


def test_a_page_made_to_exhaust_the_parser_has_no_links_and_hides_what_was_below_it(site, tmp_path):
    harm = "<p>" + "".join(f"<b c{i}>" for i in range(4000)) + "<p>x" * 4000
    site.pages |= {"/": links("evil", "b"), "/evil": harm + links("c"), "/b": "<p>b"}
    gaps: list[Gap] = []
    assert [ref.source for ref in crawl(site.url, config(site), tmp_path, gaps)] == [
        f"{site.url}/",
        f"{site.url}/evil",
        f"{site.url}/b",
    ]
    assert [(gap.by, gap.reason) for gap in gaps] == [
        (f"{site.url}/evil", "its links cannot be read: needs more than 1 GiB of memory")
    ]


def test_links_of_a_large_page_are_followed_and_its_header_obeyed(site, tmp_path):
    long = "<p>text" * 5000
    site.pages |= {
        "/": long + links("a", "b"),
        "/a": (200, {"X-Robots-Tag": "noindex"}, long + links("c")),
        "/b": (200, {"X-Robots-Tag": "nofollow"}, long + links("d")),
    }
    site.pages |= {"/c": "<p>c", "/d": "<p>d"}
    assert crawled(site, tmp_path) == ["/", "/b", "/c"]


# The next time


def test_a_second_crawl_costs_a_304_for_each_page_and_lists_the_same(site, tmp_path):
    site.pages |= {"/a.etag.html": links("b.etag.html"), "/b.etag.html": "<p>b"}
    dated = "Wed, 01 Jan 2025 00:00:00 GMT"
    site.pages["/b.etag.html"] = links("c")
    site.pages["/c"] = lambda request: (
        (304, {}, "") if request.headers["If-Modified-Since"] == dated else (200, {"Last-Modified": dated}, "<p>c")
    )
    first = list(crawl(f"{site.url}/a.etag.html", config(site), tmp_path))
    assert [status for _, status in site.take_log()] == [200, 200, 200]
    assert list(crawl(f"{site.url}/a.etag.html", config(site), tmp_path)) == first
    assert [status for _, status in site.take_log()] == [304, 304, 304]
    site.pages["/b.etag.html"] = links("c") + "more"
    changed = list(crawl(f"{site.url}/a.etag.html", config(site), tmp_path))
    assert [status for _, status in site.take_log()] == [304, 200, 304]
    assert [ref == before for ref, before in zip(changed, first, strict=True)] == [True, False, True]
    assert read_document(changed[1]).content.endswith(b"more")
    assert len(list((tmp_path / "bodies").iterdir())) == 3


def test_a_page_that_is_gone_has_vanished_and_one_that_never_was_is_a_failure(site, tmp_path):
    site.pages |= {"/": links("a", "b", "typo"), "/a": "<p>a", "/b": "<p>b"}
    assert crawled(site, tmp_path) == ["/", "/a", "/b", "/typo: 404 Not Found"]
    site.pages["/a"], site.pages["/b"] = (404, {}, ""), (410, {}, "")
    for _ in range(3):
        assert crawled(site, tmp_path) == ["/", "/typo: 404 Not Found"]
    site.pages["/a"] = "<p>back"
    assert crawled(site, tmp_path) == ["/", "/a", "/typo: 404 Not Found"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, "silent"])
def test_a_page_that_fails_for_now_is_listed_as_it_was_and_so_are_those_behind_it(site, tmp_path, caplog, status):
    site.pages |= {"/": links("hub"), "/hub": links("leaf"), "/leaf": "<p>leaf"}
    first = list(crawl(site.url, config(site), tmp_path))
    site.pages["/hub"] = (lambda request: time.sleep(0.6) or "") if status == "silent" else (status, {}, "")
    site.pages["/"] = links("hub", "new")
    site.pages["/new"] = site.pages["/hub"]
    again = list(crawl(site.url, config(site, max_retries=0, timeout_s=0.3), tmp_path))
    assert [ref.source for ref in again] == [f"{site.url}{path}" for path in ("/", "/hub", "/new", "/leaf")]
    assert again[1] == first[1] and again[3] == first[2] and again[2].error
    assert f"1 pages failed for now and are used as last fetched; the first is {site.url}/hub" in caplog.text


@pytest.mark.parametrize("status", [401, 403, 451])
def test_a_page_that_is_forbidden_now_keeps_its_place_in_the_index_and_says_so(site, tmp_path, status):
    site.pages |= {"/": links("a"), "/a": "<p>a"}
    crawled(site, tmp_path)
    site.pages["/a"] = (status, {}, "")
    assert crawled(site, tmp_path)[1].startswith(f"/a: {status} ")


def test_a_site_that_stops_answering_is_an_error_and_loses_nothing(site, tmp_path):
    site.pages |= {f"/{i}": "<p>page" for i in range(30)}
    site.pages["/"] = links(*(f"/{i}" for i in range(30)))
    broken = {f"/{i}": (503, {}, "") for i in range(15, 30)}
    working = dict(site.pages)
    site.pages |= broken
    with pytest.raises(SourceError, match="expected replies, found 10 failures in a row, the last: 503 Service"):
        crawled(site, tmp_path, max_retries=0)
    site.pages = working
    site.take_log()
    assert crawled(site, tmp_path) == ["/", *(f"/{i}" for i in range(30))]
    assert site.asked == [f"/{i}" for i in range(15, 30)]


@pytest.mark.parametrize("reply", [(500, {}, ""), (404, {}, ""), (200, {"Content-Type": "image/png"}, "")])
def test_a_start_page_that_cannot_be_read_is_an_error_also_when_it_once_could(site, tmp_path, reply):
    site.pages["/"] = reply
    with pytest.raises(SourceError, match="expected a page"):
        crawled(site, tmp_path)
    site.pages["/"] = "<p>page"
    assert crawled(site, tmp_path) == ["/"]
    site.pages["/"] = reply
    with pytest.raises(SourceError, match="expected a page"):
        crawled(site, tmp_path)


def test_pages_that_are_broken_for_good_do_not_stop_the_crawl(site, tmp_path):
    site.pages |= {f"/{i}": (500, {}, "") for i in range(15)}
    site.pages |= {"/": links(*(f"/{i}" for i in range(16))), "/15": "<p>page"}
    assert len(crawled(site, tmp_path)) == 17


SCRIPT = """
import sys
from pathlib import Path
from rag.config import WebConfig
from rag.ingest.web import crawl
list(crawl(sys.argv[1], WebConfig(delay_s=0, allow_private=(sys.argv[2],)), Path(sys.argv[3])))
"""


def test_a_killed_crawl_is_gone_on_with(site, tmp_path):
    site.pages |= {f"/{i}": f"<p>page {i}" + links(f"/{i + 1}") for i in range(9)}
    site.pages |= {"/": links("/0"), "/9": "<p>end"}
    crawler = subprocess.Popen([sys.executable, "-c", SCRIPT, site.url, site.host, str(tmp_path)])
    page = site.pages["/5"]

    def deadly(request):
        os.kill(crawler.pid, signal.SIGKILL)
        crawler.wait()
        return page

    site.pages["/5"] = deadly
    assert crawler.wait(60) == -signal.SIGKILL
    while len(site.statuses) < 7:  # the server's thread still answers the dead
        time.sleep(0.01)
    site.pages["/5"] = page
    site.take_log()
    refs = list(crawl(site.url, config(site), tmp_path))
    assert [read_document(ref).content for ref in refs][-2:] == [(b"<p>page 8" + links("/9").encode()), b"<p>end"]
    assert len(refs) == 11
    assert site.asked == ["/5", "/6", "/7", "/8", "/9"]
    site.take_log()
    assert len(crawled(site, tmp_path)) == len(site.asked) == 11  # that one was complete: the next asks again


def test_two_crawls_do_not_share_a_cache(site, tmp_path):
    site.pages |= {"/": links("a"), "/a": "<p>a"}
    one = crawl(site.url, config(site), tmp_path)
    next(one)
    other = [sys.executable, "-c", SCRIPT, site.url, site.host, str(tmp_path)]
    done = subprocess.run(other, capture_output=True, text=True, timeout=60)
    assert "SourceError" in done.stderr and "expected no other crawl, found one at work" in done.stderr
    assert len(list(one)) == 1
    assert subprocess.run(other, timeout=60).returncode == 0


def test_a_cache_that_lost_files_is_filled_again_and_a_broken_one_is_named(site, tmp_path):
    site.pages["/a.etag.html"] = "<p>a"
    (ref,) = crawl(f"{site.url}/a.etag.html", config(site), tmp_path)
    Path(ref.path).unlink()
    assert list(crawl(f"{site.url}/a.etag.html", config(site), tmp_path)) == [ref]
    assert read_document(ref).content == b"<p>a"
    (tmp_path / "manifest.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(SourceError, match="expected a usable cache, found file is not a database; remove the folder"):
        crawled(site, tmp_path)


# What it could not see


def seen(site: Site, folder: Path, start: str = "/", **settings) -> tuple[list[str], list[Gap]]:
    """Paths of what is listed, as `crawled` gives them, and the gaps."""
    gaps: list[Gap] = []
    refs = list(crawl(site.url + start, config(site, **settings), folder, gaps))
    return [ref.source.removeprefix(site.url) + (f": {ref.error}" if ref.error else "") for ref in refs], gaps


def reasons(site: Site, gaps: list[Gap]) -> list[tuple[str, str]]:
    return [(gap.by.removeprefix(site.url), gap.reason.replace(site.url, "")) for gap in gaps]


def hidden(site: Site, gap: Gap, *paths: str) -> list[str]:
    """Which of the documents at `paths` may be there all the same."""
    return [path for path in paths if site.url + path not in gap.visited and is_within(site.url + path, gap.place)]


def test_a_crawl_that_saw_everything_leaves_no_gap(site, tmp_path):
    site.pages |= {"/": links("a", "typo", "old"), "/a": "<p>a", "/old": (301, {"Location": "a"}, "")}
    assert seen(site, tmp_path) == (["/", "/a", "/typo: 404 Not Found"], [])


@pytest.mark.parametrize("reply", [(403, {}, ""), (200, {"Content-Type": "application/vnd.ms-excel"}, ""), "x" * 3000])
def test_what_a_page_led_to_is_visited_though_the_page_fails_for_good(site, tmp_path, reply):
    site.pages |= {"/": links("hub"), "/hub": "<link rel=canonical href=/whole>" + links("leaf"), "/leaf": "<p>leaf"}
    site.pages["/whole"] = "<p>whole"
    assert crawled(site, tmp_path) == ["/", "/whole", "/leaf"]
    site.pages["/hub"] = reply
    for _ in range(2):
        listed, gaps = seen(site, tmp_path, max_bytes=2000)
        assert (sorted(line.partition(":")[0] for line in listed), gaps) == (["/", "/hub", "/leaf", "/whole"], [])


@pytest.mark.parametrize("status", [403, 500])
def test_a_page_that_fails_and_was_never_read_hides_what_the_crawl_did_not_come_by(site, tmp_path, status):
    site.pages |= {"/": links("moved", "hub", "gone", "a"), "/hub": (status, {}, ""), "/a": links("gone")}
    site.pages["/moved"] = (301, {"Location": "to"}, "")
    site.pages["/to"] = (status, {}, "")
    listed, gaps = seen(site, tmp_path)
    reason = {403: "403 Forbidden", 500: "500 Internal Server Error"}[status]
    assert listed == ["/", f"/moved: {reason}", f"/hub: {reason}", "/gone: 404 Not Found", "/a"]
    assert reasons(site, gaps) == [("/moved", reason), ("/to", reason), ("/hub", reason)]
    for gap in gaps:
        assert hidden(site, gap, "/", "/leaf", "/gone", "/a", "/to", "/x/y?z") == ["/leaf", "/to", "/x/y?z"]


def test_a_failure_behind_a_redirect_belongs_to_the_page_that_was_read(site, tmp_path):
    site.pages |= {"/": links("old"), "/old": (301, {"Location": "hub"}, ""), "/hub": links("leaf"), "/leaf": "<p>leaf"}
    assert crawled(site, tmp_path) == ["/", "/hub", "/leaf"]
    site.pages["/hub"] = (403, {}, "")
    assert seen(site, tmp_path) == (["/", "/hub: 403 Forbidden", "/leaf"], [])


def test_pages_beyond_a_limit_are_not_gone(site, tmp_path):
    site.pages |= {"/": links("a", "b", "c"), "/a": links("a/deep"), "/b": "<p>b", "/c": "<p>c"}
    site.pages |= {"/a/deep": links("deeper"), "/a/deeper": "<p>deeper"}
    listed, (gap,) = seen(site, tmp_path, max_pages=3)
    assert (listed, gap.by, gap.reason) == (["/", "/a", "/b"], "", "crawl cut short by web.max_pages=3")
    assert hidden(site, gap, "/", "/a", "/b", "/c", "/a/deep") == ["/c", "/a/deep"]
    listed, (gap,) = seen(site, tmp_path, max_depth=2)
    assert (listed, gap.reason) == (["/", "/a", "/b", "/c", "/a/deep"], "crawl cut short by web.max_depth=2")
    assert hidden(site, gap, "/a/deep", "/a/deeper") == ["/a/deeper"]


def test_within_a_limit_what_was_visited_and_is_no_document_any_more_is_gone(site, tmp_path):
    names = ("gone", "noindex", "moved", "copy")
    site.pages |= {f"/{name}": f"<p>{name}" for name in names} | {"/": links(*names, "beyond"), "/whole": "<p>whole"}
    assert len(seen(site, tmp_path)[0]) == 6
    site.pages |= {
        "/gone": (410, {}, ""),
        "/noindex": "<meta name=robots content=noindex>",
        "/moved": (301, {"Location": "/"}, ""),
        "/copy": "<link rel=canonical href=/whole>",
    }
    listed, (gap,) = seen(site, tmp_path, max_pages=6)
    assert listed == ["/", "/whole"]
    assert hidden(site, gap, *(f"/{name}" for name in names), "/beyond") == ["/beyond"]


def test_a_canonical_page_that_a_limit_cuts_off_is_not_gone(site, tmp_path):
    site.pages |= {"/": links("copy"), "/copy": "<link rel=canonical href=/whole>", "/whole": "<p>whole"}
    listed, (gap,) = seen(site, tmp_path, max_pages=2)
    assert (listed, hidden(site, gap, "/copy", "/whole")) == (["/", "/copy"], ["/whole"])


@pytest.mark.parametrize("status", [302, 303, 307])
def test_a_page_that_sends_its_readers_away_for_now_stays_as_last_fetched(site, tmp_path, caplog, status):
    site.pages |= {"/": links("login", "a", "b"), "/login": "<p>login", "/a": links("leaf"), "/b": "<p>b"}
    site.pages["/leaf"] = "<p>leaf"
    first = list(crawl(site.url, config(site), tmp_path))
    site.pages["/a"] = (status, {"Location": "/login?next=a"}, "")
    site.pages["/login?next=a"] = (status, {"Location": "/login"}, "")
    site.pages["/b"] = (status, {"Location": "https://login.example.org/"}, "")
    for _ in range(2):
        caplog.clear()
        gaps: list[Gap] = []
        assert (list(crawl(site.url, config(site), tmp_path, gaps)), gaps) == (first, [])
        assert f"2 pages failed for now and are used as last fetched; the first is {site.url}/a:" in caplog.text
        assert f"redirects for now to {site.url}/login" in caplog.text
    site.pages["/a"] = site.pages["/b"] = (301, {"Location": "/login"}, "")
    assert seen(site, tmp_path) == (["/", "/login"], [])
    site.pages["/a"] = (status, {"Location": "/login"}, "")
    assert seen(site, tmp_path)[0] == ["/", "/login"]  # gone is gone


def test_a_page_never_read_that_sends_its_readers_away_for_now_hides_others(site, tmp_path):
    site.pages |= {"/": links("login", "a"), "/login": "<p>login", "/a": (302, {"Location": "/login"}, "")}
    listed, (gap,) = seen(site, tmp_path)
    assert (listed, reasons(site, [gap])) == (["/", "/login"], [("/a", "redirects for now to /login")])
    assert hidden(site, gap, "/", "/login", "/a", "/leaf") == ["/a", "/leaf"]


def test_a_page_that_redirects_for_now_to_a_new_page_of_the_site_has_moved(site, tmp_path):
    site.pages |= {"/": links("old"), "/old": "<p>old", "/new": "<p>new"}
    assert crawled(site, tmp_path) == ["/", "/old"]
    site.pages["/old"] = (302, {"Location": "/new"}, "")
    assert seen(site, tmp_path) == (["/", "/new"], [])
    site.pages["/"] = links("new", "old")  # and it is not taken for the page that it was before
    assert seen(site, tmp_path)[0] == ["/", "/new"]


def test_a_login_page_that_sends_its_readers_back_costs_no_page(site, tmp_path):
    site.pages |= {"/": links("a"), "/a": links("leaf"), "/leaf": "<p>leaf"}
    assert crawled(site, tmp_path) == ["/", "/a", "/leaf"]
    site.pages |= {"/a": (302, {"Location": "/login"}, ""), "/login": (302, {"Location": "/a"}, "")}
    for _ in range(2):
        failed = f"/a: redirects in a circle, back to {site.url}/a"
        assert seen(site, tmp_path) == (["/", failed, "/leaf"], [])


def test_what_only_a_sitemap_leads_to_is_not_gone_while_the_sitemap_fails(site, tmp_path):
    site.pages |= {"/robots.txt": "Sitemap: /s.xml", "/": "<p>start", "/only": "<p>only"}
    site.pages["/s.xml"] = f"<urlset><url><loc>{site.url}/only</loc></url></urlset>"
    assert seen(site, tmp_path / "a") == (["/", "/only"], [])
    site.pages["/s.xml"] = (403, {}, "")
    assert seen(site, tmp_path / "a") == (["/", "/only"], [])
    assert seen(site, tmp_path / "b") == (["/"], [])  # one that never could be read
    site.pages["/s.xml"] = (500, {}, "")
    listed, (gap,) = seen(site, tmp_path / "b")
    assert (listed, gap.by, gap.reason) == (["/"], "", f"{site.url}/s.xml: 500 Internal Server Error")
    assert hidden(site, gap, "/", "/only") == ["/only"]


def test_more_sitemaps_than_are_read_are_a_limit(site, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(web_sitemaps, "MAX_SITEMAPS", 2)
    site.pages |= {"/robots.txt": "".join(f"Sitemap: /{i}.xml\n" for i in range(3)), "/": "<p>start"}
    site.pages |= {f"/{i}.xml": "<urlset></urlset>" for i in range(3)}
    _, (gap,) = seen(site, tmp_path)
    assert gap.reason == "crawl cut short by 2 sitemaps"
    assert "linked pages beyond 2 sitemaps were not visited" in caplog.text
