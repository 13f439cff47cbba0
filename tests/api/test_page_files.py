"""The page's files as they are sent, and the release that their addresses name."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from shoal.api import page
from shoal.api.page_files import PageFile, PageFiles
from shoal.api.page_modules import LinkError
from shoal.dashboard import STATIC


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    page.mount(app)
    return TestClient(app)


def made(folder: Path, **files: str) -> PageFiles:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_js", ".js").replace("_css", ".css")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return PageFiles(folder)


def text(file: PageFile | None) -> str:
    assert file is not None
    return file.body.decode()


def made_in(script: str) -> set[str]:
    """The modules that a script brings."""
    return set(re.findall(r'^shoalModules\["([^"]+)"\] \?\?=', script, re.MULTILINE))


def test_the_page_asks_for_one_script_and_each_view_for_one_more() -> None:
    files = PageFiles(STATIC)
    asked = re.findall(r'(?:src|href)="static/([^"]+)"', text(files.index()))
    assert all(name.startswith(f"{files.release()}/") for name in asked)
    names = [name.split("/", 1)[1] for name in asked]
    assert names == ["theme.js+early.js", "icon.svg", "base.css+overview.css", "app.js"]
    first = made_in(text(files.released(files.release(), "app.js")[0]))
    assert {"app.js", "store.js", "views/overview.js", "components/row.js", "vendor/preact.js"} <= first
    assert not {"views/playground.js", "vendor/uplot.js"} & first
    view = made_in(text(files.released(files.release(), "views/playground.js")[0]))
    assert "views/playground.js" in view and not view & first
    assert text(files.released(files.release(), "theme.js")[0]) == (STATIC / "theme.js").read_text()
    assert text(files.released(files.release(), "base.css")[0]) == (STATIC / "base.css").read_text()


def test_a_release_lasts_until_a_file_changes(tmp_path: Path) -> None:
    files = made(tmp_path, app_js='import "./b.js";', b_js="1;", a_css="x")
    (tmp_path / "index.html").write_text('<link href="static/a.css"><script src="static/app.js"></script><a href="x">')
    first = files.release()
    assert (
        text(files.index())
        == f'<link href="static/{first}/a.css"><script src="static/{first}/app.js"></script><a href="x">'
    )
    script, lasting = files.released(first, "app.js")
    assert lasting and "1;" in text(script) and files.released(first, "app.js")[0] is script
    (tmp_path / "b.js").write_text("2;")
    assert f"static/{files.release()}/app.js" in text(files.index()) and files.release() != first
    assert files.released(first, "app.js") == (None, False)  # for a page that was opened before
    assert files.released(first, "a.css") == (files.get("a.css"), False)
    assert files.released(files.release(), "gone.js") == (None, True)
    (tmp_path / "b.js").unlink()
    with pytest.raises(LinkError, match=r"b\.js is imported, and there is no such file"):
        files.released(files.release(), "app.js")


def test_what_follows_each_other_in_the_index_is_asked_for_at_once(tmp_path: Path) -> None:
    files = made(tmp_path, a_js="a()", b_js="b()", c_js="c()", x_css="x{}", y_css="y{}", z_css="z{}")
    script, sheet = '<script src="static/{}.js"></script>', '<link rel="stylesheet" href="static/{}.css">'
    rest = f"<p>{script.format('c')}</p><link rel=icon href='i'>{sheet.format('z')}"
    (tmp_path / "index.html").write_text(
        f"{script.format('a')}\n  {script.format('b')}\n{sheet.format('x')}{sheet.format('y')}{rest}"
    )
    release = files.release()
    said = f"{script.format('a.js+b')}\n{sheet.format('x.css+y')}{rest}".replace("static/", f"static/{release}/")
    assert text(files.index()) == said
    joint, lasting = files.released(release, "a.js+b.js")
    assert lasting and joint is not None and joint.type.startswith("text/javascript") and text(joint) == "a()\n;\nb()"
    assert text(PageFiles(tmp_path).released(release, "x.css+y.css")[0]) == "x{}\ny{}"  # before anybody had the index
    assert files.released(release, "a.js+c.js") == files.released(release, "+") == (None, True)
    (tmp_path / "b.js").write_text("b2()")
    assert files.index() and files.release() != release
    joint, lasting = files.released(release, "a.js+b.js")  # each stands alone: it is there for a page of before too
    assert text(joint) == "a()\n;\nb2()" and not lasting
    (tmp_path / "b.js").unlink()
    assert "/a.js" in text(files.index()) and "/b.js" in text(files.index())
    (tmp_path / "index.html").unlink()
    assert files.released(files.release(), "a.js+b.js") == (None, True)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    files = made(tmp_path, a_js="1")
    first = files.get("a.js")
    assert first is not None and first.body == b"1" and files.get("a.js") is first
    (tmp_path / "a.js").write_text("22")
    second = files.get("a.js")
    assert second is not None and second.body == b"22" and second.etag != first.etag
    (tmp_path / "a.js").unlink()
    assert files.get("a.js") is None


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../secret", "a/../../secret", "sub", "/etc/passwd", "a\0b", "x" * 999]
)
def test_nothing_outside_and_no_folder_is_served(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "page" / "sub").mkdir(parents=True)
    assert PageFiles(tmp_path / "page").get(path) is None


def test_files_are_compressed_for_those_who_take_it_and_not_sent_twice(client: TestClient) -> None:
    zipped = client.get("/static/store.js", headers={"accept-encoding": "gzip"})
    plain = client.get("/static/store.js", headers={"accept-encoding": "identity"})
    assert zipped.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert zipped.content == plain.content == (STATIC / "store.js").read_bytes()
    assert int(zipped.headers["content-length"]) == len(gzip.compress(plain.content))
    assert zipped.headers["content-type"] == "text/javascript; charset=utf-8"
    assert zipped.headers["vary"] == "accept-encoding"
    again = client.get("/static/store.js", headers={"if-none-match": zipped.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    head = client.head("/static/store.js", headers={"accept-encoding": "identity"})
    assert head.content == b"" and head.headers["content-length"] == str(len(plain.content))


def test_every_answer_has_the_strict_policy(client: TestClient) -> None:
    release = PageFiles(STATIC).release()
    kept = [f"/static/{release}/{name}" for name in ("app.js", "base.css", "views/add.js", "icon.svg")]
    asked = ["/", "/static/app.js", "/static/base.css", f"/static/{'0' * 16}/base.css", "/api/docs"]
    for path in [*kept, *asked]:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == page.CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == ("max-age=31536000, immutable" if path in kept else "no-cache")
    for path in (
        f"/static/{release}/none.js",
        f"/static/{'0' * 16}/views/add.js",
        f"/static/{release}/../page.py",
        f"/static/{release}/",
        "/static/",
        "/static/none.js",
        "/static/..%2fpage.py",
        "/static/vendor",
    ):
        assert client.get(path).status_code == 404
