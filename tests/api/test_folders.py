"""`GET /api/v1/folders`: what may be looked at, what looks like a model, and what is refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shoal.api import folders
from shoal.api.folders import browse, roots
from shoal.errors import ShoalError
from shoal.fleet.spec import ModelSpec
from tests.api.fitting import app, world
from tests.api.guarded import Admin

Json = dict[str, Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two models, one of them in the hub's cache, and things that are none."""
    home = (tmp_path / "home").resolve()
    model(home / "models" / "qwen")
    model(home / "models" / "small", weights="small-q4.gguf")
    (home / "models" / "notes").mkdir()
    (home / "models" / "notes" / "config.json").write_text("{}")
    (home / "models" / "a file").write_text("x")
    (home / ".secret").mkdir()
    repository = home / ".cache/huggingface/hub/models--org--tiny"
    model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


def model(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / weights).write_bytes(b"")
    return folder


async def ask(folder: Path, status: int = 200, **query: str) -> Json:
    transport = httpx2.ASGITransport(app(world(), folder))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await client.get("/api/v1/folders", params=query)
    assert response.status_code == status, response.text
    found: Json = response.json()
    return found if status == 200 else found["error"]


def refused(path: str, allowed: list[Path]) -> ShoalError:
    with pytest.raises(ShoalError) as error:
        browse(path, allowed)
    return error.value


async def test_it_begins_at_the_home_and_the_hidden_cache(home: Path, tmp_path: Path) -> None:
    found = await ask(tmp_path)
    assert [one["path"] for one in found["folders"]] == [str(home), str(home / ".cache/huggingface/hub")]
    assert (found["path"], found["parent"]) == (None, None)


async def test_models_are_told_from_other_folders(home: Path, tmp_path: Path) -> None:
    found = await ask(tmp_path, path="~/models")
    assert [(one["name"], one["weights"]) for one in found["folders"]] == [
        ("notes", None),
        ("qwen", "safetensors"),
        ("small", "gguf"),
    ]
    assert found["folders"][1]["source"] == str(home / "models" / "qwen")
    assert (found["path"], found["parent"], found["left_out"]) == (str(home / "models"), str(home), 0)
    inside = await ask(tmp_path, path=str(home / "models" / "qwen"))
    assert (inside["source"], inside["weights"], inside["folders"]) == (inside["path"], "safetensors", [])


async def test_the_cache_lists_hub_ids(home: Path, tmp_path: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    (hub / "models--org--half").mkdir()
    found = await ask(tmp_path, path=str(hub))
    assert [(one["name"], one["source"]) for one in found["folders"]] == [("org/half", None), ("org/tiny", "org/tiny")]
    assert found["parent"] is None


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "long", "no text"])
def test_a_revision_that_is_no_small_file_is_none(home: Path, kind: str) -> None:
    hub = home / ".cache/huggingface/hub"
    main = hub / "models--org--tiny" / "refs" / "main"
    main.unlink()
    match kind:
        case "fifo":
            os.mkfifo(main)
        case "zero":
            main.symlink_to("/dev/zero")
        case "folder":
            main.mkdir()
        case "long":
            main.write_text(" " * folders.MOST_REVISION + "abc")
        case _:
            main.write_bytes(b"\xff")
    found: list[list[str | None]] = []
    look = threading.Thread(target=lambda: found.append([one.source for one in browse(str(hub), [hub]).folders]))
    look.daemon = True
    look.start()
    look.join(20)
    assert found == [[None]]


async def test_a_share_that_hangs_takes_two_threads_and_no_more(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, hung = threading.Event(), []
    real = Path.resolve

    def resolve(path: Path, strict: bool = False) -> Path:
        if path.name == "share":
            hung.append(path)
            release.wait()
        return real(path, strict)

    monkeypatch.setattr(Path, "resolve", resolve)
    monkeypatch.setattr(folders, "PATIENCE", 0.05)
    application = app(world(), tmp_path)
    transport = httpx2.ASGITransport(application)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for _ in range(4):
            answer = await client.get("/api/v1/folders", params={"path": "~/share"})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], "network share" in error["message"]) == (
                503,
                "folders_hang",
                True,
            )
        assert len(hung) == folders.THREADS
        application.state.folder_threads.patience = 30
        release.set()
        assert (await client.get("/api/v1/folders")).status_code == 200


async def test_hidden_folders_and_files_are_left_out(home: Path, tmp_path: Path) -> None:
    assert [one["name"] for one in (await ask(tmp_path, path=str(home)))["folders"]] == ["models"]


@pytest.mark.parametrize("path", ["/", "/etc", "~/..", "~/models/../../..", "/nowhere/at/all", "~nobody-here/x"])
async def test_nothing_outside_is_told(home: Path, tmp_path: Path, path: str) -> None:
    error = await ask(tmp_path, 400 if path.startswith("~nobody") else 403, path=path)
    assert error["param"] == "path"
    assert error["code"] in ("folder_not_allowed", "invalid_request")


async def test_dots_inside_are_followed(home: Path, tmp_path: Path) -> None:
    assert (await ask(tmp_path, path="~/models/qwen/../notes/..//."))["path"] == str(home / "models")


@pytest.mark.parametrize("path", ["", "models", "./models", "~/mod\0els", "\0"])
async def test_what_is_no_path_is_said(home: Path, tmp_path: Path, path: str) -> None:
    error = await ask(tmp_path, 400, path=path)
    assert "is not the path of a folder" in error["message"]


async def test_a_file_and_a_folder_that_is_gone(home: Path, tmp_path: Path) -> None:
    assert "is not a folder" in (await ask(tmp_path, 404, path="~/models/a file"))["message"]
    error = await ask(tmp_path, 404, path="~/models/gone")
    assert (error["code"], "is not there" in error["message"]) == ("folder_not_found", True)


async def test_too_long_a_path(home: Path, tmp_path: Path) -> None:
    assert "4096" in (await ask(tmp_path, 400, path="~/" + "x" * 5000))["message"]
    await ask(tmp_path, 404, path="~/" + "x" * 3000)  # longer than a name can be


async def test_links_may_lead_about_but_not_out(home: Path, tmp_path: Path) -> None:
    outside = model(tmp_path / "outside")
    links = home / "links"
    links.mkdir()
    (links / "within").symlink_to(home / "models" / "qwen")
    (links / "out").symlink_to(outside)
    (links / "loop").symlink_to(links / "loop")
    (links / "broken").symlink_to(home / "gone")
    found = {one["name"]: one for one in (await ask(tmp_path, path=str(links)))["folders"]}
    assert found["within"]["source"] == str(links / "within")
    assert found["out"]["path"] is None
    assert "leads out" in found["out"]["problem"]
    assert set(found) == {"within", "out"}
    assert (await ask(tmp_path, 403, path=str(links / "out")))["code"] == "folder_not_allowed"
    assert (await ask(tmp_path, 403, path=str(links / "out" / "..")))["code"] == "folder_not_allowed"
    assert (await ask(tmp_path, 403, path=str(links / "loop")))["code"] == "folder_not_allowed"


async def test_who_may_only_look_sees_no_folders(home: Path, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "manager", world().manager, raising=False)
    await admin.user()
    await admin.user("bob", "read-only")
    answer = await (await admin.signed_in(name="bob")).get("/api/v1/folders")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "read_only")
    assert "bob may look at all of Shoal, but" in answer.json()["error"]["message"]
    assert (await (await admin.signed_in(name="ann")).get("/api/v1/folders")).status_code == 200


def test_a_declared_model_opens_the_folder_that_it_lies_in(home: Path, tmp_path: Path) -> None:
    store = model(tmp_path / "store" / "big").parent
    model(store / "neighbour")
    specs = [ModelSpec(name=f"m{n}", source=source) for n, source in enumerate([f"{store}/big", "org/m", "/x", "./y"])]
    allowed = roots(specs)
    assert store in allowed
    assert Path("/") not in allowed
    assert [one.name for one in browse(str(store), allowed).folders] == ["big", "neighbour"]
    assert browse(str(store), allowed).parent is None
    assert refused(str(store.parent), allowed).status == 403


def test_a_user_who_lives_at_the_root_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert Path("/") not in roots([])


def test_what_may_not_be_read_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Any) -> Any:  # as root, permissions stop nobody
        if Path(path).name == "qwen":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    error = refused(str(home / "models" / "qwen"), [home])
    assert (error.status, error.code) == (403, "folder_unreadable")
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != "notes")
    found = {one.name: one for one in browse(str(home / "models"), [home]).folders}
    assert "may not be read" in found["notes"].problem
    assert found["qwen"].source is None


def test_ten_thousand_folders_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    for number in range(10_000):
        (root / f"m{number:05}").mkdir()
    found = browse(str(root), [root])
    assert len(found.folders) == folders.MOST_SHOWN
    assert found.left_out == 10_000 - folders.MOST_SHOWN
    assert [one.name for one in found.folders[:2]] == ["m00000", "m00001"]


def test_a_name_that_is_no_text_is_listed_and_not_opened(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / os.fsdecode(b"bad-\xff")).mkdir()
    (only,) = browse(str(root), [root]).folders
    assert (only.path, "not UTF-8" in only.problem) == (None, True)
    assert only.name == "bad-\ufffd"
