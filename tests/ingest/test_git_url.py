import pytest

from rag.errors import SourceError
from rag.ingest.git_url import canonical_repository, parse_repository, place_of

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "canonical", "place"),
    [
        ("git+https://GitHub.com/o/r", "git+https://github.com/o/r", "git+https://github.com/o/r"),
        ("git+https://github.com:443/o/r.git/", "git+https://github.com/o/r", "git+https://github.com/o/r"),
        ("git+https://t0ken@github.com/o/r@v1", "git+https://github.com/o/r@v1", "git+https://github.com/o/r"),
        (
            "git+ssh://git@host:2222/o/r.git@feature/x#subdirectory=/docs/",
            "git+ssh://host:2222/o/r@feature/x#subdirectory=docs",
            "git+ssh://host:2222/o/r/docs",
        ),
        ("git+file:///srv/a%20b", "git+file:///srv/a%20b", "git+file:///srv/a%20b"),
        ("git+file://localhost/srv/a%40b@pkg@1.0", "git+file:///srv/a%40b@pkg%401.0", "git+file:///srv/a%40b"),
        ("git+https://h/o/r#subdirectory=x.git", "git+https://h/o/r#subdirectory=x.git", "git+https://h/o/r/x%2Egit"),
    ],
)
def test_a_repository_has_one_name_whatever_login_and_ref(source, canonical, place):
    assert canonical_repository(source) == canonical_repository(canonical) == canonical
    assert place_of(source) == place_of(canonical) == place


def test_git_is_given_the_address_without_a_password_and_the_user_of_ssh():
    https = parse_repository("git+https://user:p%40ss@host/o/r.git@v1")
    assert (https.url, https.ref, https.login) == ("https://host/o/r.git", "v1", ("user", "p@ss"))
    assert "p@ss" not in repr(https)
    ssh = parse_repository("git+ssh://git:secret@host/o/r")
    assert (ssh.url, ssh.login) == ("ssh://git@host/o/r", None)


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ("git+https://github.com/o/r", f"https://github.com/o/r/blob/{SHA}/a%20b.md"),
        ("git+ssh://git@gitlab.com/g/s/r", f"https://gitlab.com/g/s/r/-/blob/{SHA}/a%20b.md"),
        ("git+https://git.example.org/r", ""),
    ],
)
def test_a_file_has_an_address_that_a_reader_can_open(source, page):
    assert parse_repository(source).page.format(commit=SHA, path="a%20b.md") == page


@pytest.mark.parametrize(
    "source",
    [
        "git+https://",
        "git+https://host",
        "git+https:///o/r",
        "git+https://-oProxyCommand=x/o/r",
        "git+ssh://-oProxyCommand=x/o/r",
        "git+https://user:pa/ss@host/o/r",
        "git+https://host/o/../r",
        "git+https://host/o/r\n",
        "git+https://host/o/r@-x",
        "git+https://host/o/r@a b",
        "git+file://host/o/r",
        "git+ext://sh -c x",
        "git+https://host/o/r?access_token=pa",
    ],
)
def test_what_git_or_a_shell_could_take_for_something_else_is_refused(source):
    with pytest.raises(SourceError) as caught:
        parse_repository(source)
    assert "pa" not in str(caught.value).replace("path", "").replace("expected a path", "")
