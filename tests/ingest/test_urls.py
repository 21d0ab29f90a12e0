"""One spelling for each web address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import SourceError
from rag.ingest.urls import canonical_url, folder_of, is_below, join_url, origin_of, shown_target


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("HTTP://Docs.Example.ORG", "http://docs.example.org/"),
        ("https://docs.example.org:443/a", "https://docs.example.org/a"),
        ("http://docs.example.org:443/a", "http://docs.example.org:443/a"),
        ("http://docs.example.org:/a", "http://docs.example.org/a"),
        ("  https://docs.example.org/a#part\n", "https://docs.example.org/a"),
        ("https://docs.example.org./a", "https://docs.example.org/a"),
        ("https://d.org/a/./b/../c/..", "https://d.org/a/"),
        ("https://d.org/../../a", "https://d.org/a"),
        ("https://d.org/a/%2e%2E/b", "https://d.org/b"),
        ("https://d.org/%7euser/%c3%a4 b/\u00e4", "https://d.org/~user/%C3%A4%20b/%C3%A4"),
        ("https://d.org/100%/%zz", "https://d.org/100%25/%25zz"),
        ("https://d.org/a//b", "https://d.org/a//b"),
        ("https://d.org/?utm_source=x&b=%2f&a=1 2", "https://d.org/?utm_source=x&b=%2F&a=1%202"),
        ("https://d.org/a?", "https://d.org/a"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
        ("http://\uff24\u3002org/", "http://d.org/"),
        ("http://my_wiki:8080/", "http://my_wiki:8080/"),
        ("http://[2606:4700:0:0::1111]:80/", "http://[2606:4700::1111]/"),
        ("https://d.org/@user/x", "https://d.org/@user/x"),
    ],
)
def test_an_address_has_one_spelling(written, canonical):
    assert canonical_url(written) == canonical == canonical_url(canonical)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("docs.example.org", "no host"),
        ("ftp://d.org/", "neither"),
        ("file:///etc/passwd", "no host"),
        ("http:///a", "no host"),
        ("http://d.org:99999/", "99999"),
        ("http://d.org:0/", "0"),
        ("http://d.org:8x/", "something else"),
        ("http://-d.org/", "something else"),
        ("http://a..b/", "something else"),
        ("http://d%2eorg/", "something else"),
        ("http://d.org\\a", "a backslash"),
        ("http://d\t.org/", "control characters"),
        ("http://127.1/", "another spelling"),
        ("http://[::1%25lo]/", "something else"),
        ("http://[::1/", "a host name"),
        ("http://" + "a." * 130 + "org/", "something else"),
        ("http://d.org/" + "a" * 2000, "2013"),
        ("http://d.org/" + "\u00e9" * 700, "4213"),
        ("http://d.org/?" + "%" * 1500, "4514"),
        ("http://d.org/" + "\u0301\u0316" * 200_000, "400013"),  # takes minutes to normalise
    ],
)
def test_what_is_no_plain_web_address_is_refused_in_one_line(written, found):
    with pytest.raises(SourceError) as caught:
        canonical_url(written)
    assert found in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "secret", ["user:hunter2@d.org", "hunter2@d.org:99999", "u:hunter2\uff20d.org", "hunter2@[::1"]
)
def test_a_password_in_an_address_is_refused_and_never_shown(secret):
    with pytest.raises(SourceError) as caught:
        canonical_url(f"https://{secret}/a")
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=60), st.text(alphabet="/.%2eE?&=a~\u00e4 :@", max_size=40)
)
def test_the_canonical_spelling_is_its_own(host, rest):
    for url in (f"http://{host}/{rest}", f"https://d.org/{rest}", f"https://d.org/{host}"):
        try:
            canonical = canonical_url(url)
        except SourceError:
            continue
        assert canonical_url(canonical) == canonical
        assert canonical.isascii() and "/../" not in canonical.partition("?")[0]


@pytest.mark.parametrize(
    ("href", "target"),
    [
        ("b.html", "https://d.org/a/b.html"),
        ("../c#x", "https://d.org/c"),
        ("?q=1", "https://d.org/a/?q=1"),
        ("//e.org/x", "https://e.org/x"),
        (" \n b\n.html ", "https://d.org/a/b.html"),
        ("#top", "https://d.org/a/"),
        ("mailto:me@d.org", None),
        ("javascript:void(0)", None),
        ("http://[", None),
        ("..\\x", None),
        ("\u00e9" * 700, None),
        ("//" + "\u0301\u0316" * 200_000, None),
    ],
)
def test_a_link_is_joined_as_a_browser_does_or_is_none(href, target):
    assert join_url("https://d.org/a/", href) == target


@pytest.mark.parametrize(
    ("start", "folder"),
    [
        ("https://d.org/", "https://d.org/"),
        ("https://d.org/en/latest/", "https://d.org/en/latest/"),
        ("https://d.org/en/latest", "https://d.org/en/latest/"),
        ("https://d.org/en/3.12", "https://d.org/en/3.12/"),
        ("https://d.org/a/index.html", "https://d.org/a/"),
        ("https://d.org/a/View.PHP?id=1/2", "https://d.org/a/"),
    ],
)
def test_a_crawl_stays_below_the_folder_of_its_start(start, folder):
    assert folder_of(start) == folder


def test_a_page_belongs_to_a_start_of_the_same_site_and_folder():
    start = "https://d.org/en/latest/"
    inside = ["https://d.org/en/latest/", "https://d.org/en/latest", "https://d.org/en/latest/a/b?c=/", start + "?x"]
    outside = [
        "https://d.org/en/",
        "https://d.org/en/latest2/a",
        "http://d.org/en/latest/a",
        "https://d.org:8/en/latest/",
    ]
    outside += ["https://e.org/en/latest/a", "file:///en/latest/a", "python:ray", "https://d.org.evil.org/en/latest/"]
    assert [page for page in inside + outside if is_below(page, start)] == inside
    assert origin_of("https://d.org:8/en?x=/") == "https://d.org:8"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://d.org/a?token=s3cret", "https://d.org/a?..."),
        ("https://d.org/a#access_token=s3cret", "https://d.org/a?..."),
        ("https://user:s3?cret@d.org/a", "...@d.org/a"),
        ("https://user:s3cret\uff20d.org/a?b", "...@d.org/a?..."),
        ("https://d.org/a", "https://d.org/a"),
    ],
)
def test_where_a_site_leads_is_shown_without_what_may_be_a_token(url, text):
    assert shown_target(url) == text
