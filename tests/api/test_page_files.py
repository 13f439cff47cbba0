"""The page's files as they are sent, and the index that names what is needed first."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from shoal.api import page
from shoal.api.page_files import PageFiles
from shoal.dashboard import STATIC


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    page.mount(app)
    return TestClient(app)


def made(folder: Path, **files: str) -> PageFiles:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_js", ".js")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return PageFiles(folder)


def test_every_module_that_the_page_needs_first_is_preloaded_once() -> None:
    text = PageFiles(STATIC).index().body.decode()
    links = re.findall(r'<link rel="modulepreload" href="static/([^"]+)">', text)
    assert len(links) == len(set(links))
    assert {"store.js", "views/overview.js", "components/row.js", "vendor/preact.js"} <= set(links)
    for name in [*links, "app.js"]:
        for other in re.findall(r'from\s*"([^"]+)"', (STATIC / name).read_text()):
            needed = os.path.relpath((STATIC / name).parent.joinpath(other).resolve(), STATIC)
            assert needed in links, f"{name} needs {needed}"
    assert "views/playground.js" not in links  # it comes when it is gone to
    assert text.index("modulepreload") < text.index('<script type="module"')


def test_imports_are_followed_from_folder_to_folder_and_round(tmp_path: Path) -> None:
    files = made(
        tmp_path,
        app_js='import { a } from "./sub/a.js";\nimport "./b.js";\nimport(\'./lazy.js\');\n// import("./late.js")',
        sub__a_js='import{x}from"../b.js";export*from"./gone.js"',
        b_js='import "./app.js";',
    )
    (tmp_path / "index.html").write_text('<head><script type="module" src="static/app.js"></script></head>')
    found = re.findall(r'href="static/([^"]+)"', files.index().body.decode())
    assert found == ["sub/a.js", "b.js", "sub/gone.js"]
    (tmp_path / "b.js").write_text('import "./more.js";')
    assert b"static/more.js" in files.index().body


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
    for path in ("/", "/static/app.js", "/static/base.css", "/static/icon.svg"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == page.CONTENT_SECURITY_POLICY
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/static/", "/static/none.js", "/static/..%2fpage.py", "/static/vendor"):
        assert client.get(path).status_code == 404
