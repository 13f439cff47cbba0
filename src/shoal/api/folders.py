"""Folders of this machine, for people who look for a model: which there are below a few roots, and which hold one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.api.threads import NoAnswerError, Threads
from shoal.errors import NotFoundError, ShoalError
from shoal.fleet.spec import MAX_SOURCE, ModelSpec

if TYPE_CHECKING:
    from shoal.api.guard import Caller

router = APIRouter(prefix="/api/v1", tags=["models"])
MOST_SHOWN = 500
MOST_READ = 50_000
"""Entries of a folder that are looked at; of one that has more, what comes after is not known."""
MOST_INSIDE = 2000
"""Entries of each shown folder that are looked at to tell whether it holds a model."""
MOST_REVISION = 256
"""Bytes that are read of the file that names a cached repository's main revision."""
THREADS = 2
PATIENCE = 10.0
"""Seconds that folders may take to read."""
_CONFIGS = frozenset({"config.json", "params.json"})
_WEIGHTS = {".safetensors": "safetensors", ".gguf": "gguf", ".bin": "bin"}
_REPOSITORY = "models--"


class FolderView(BaseModel):
    """A folder. `source`: what to give as a model's source, if it looks like one, whose `weights` are of that format.
    `path` is null for one that cannot be opened, and `problem` says why."""

    name: str
    path: str | None
    source: str | None = None
    weights: str | None = None
    problem: str = ""


class FolderList(BaseModel):
    """A folder and those in it, by name; without a path the roots. `parent` is null at a root. `left_out`: how many are
    there that are not listed."""

    path: str | None
    parent: str | None
    source: str | None
    weights: str | None
    folders: list[FolderView]
    left_out: int


@router.get("/folders")
async def list_folders(
    controller: Context,
    request: Request,
    path: Annotated[str | None, Query(max_length=MAX_SOURCE, description="Default: where one can begin.")] = None,
) -> FolderList:
    """Folders below the user's home, the hub's cache, and where declared models lie; nowhere else (403
    `folder_not_allowed`), also not by links. Hidden folders are left out; repositories of the cache are hub ids.
    For admins only: what lies there is not all Shoal's."""
    caller: Caller = request.scope["shoal.caller"]
    if caller.admitted is not None and caller.admitted.user.role != "admin":
        raise ShoalError(
            f"{caller.admitted.user.name} may look at all of Shoal, but not at folders of its machine; an admin may",
            status=403,
            code="read_only",
        )
    specs = [model.spec for model in controller.manager.fleet.models.values()]
    threads: Threads = request.app.state.folder_threads
    try:
        return await threads.run(partial(_list, path, specs))
    except NoAnswerError:
        raise ShoalError(
            f"the folders did not answer within {PATIENCE:g} s: this one, or a declared model's, may be on a "
            "network share that is away. See that its server answers and try again, or type a path as the source",
            status=503,
            code="folders_hang",
            param="path",
        ) from None


def _list(path: str | None, specs: Iterable[ModelSpec]) -> FolderList:
    allowed = roots(specs)
    return start(allowed) if path is None else browse(path, allowed)


def roots(specs: Iterable[ModelSpec]) -> list[Path]:
    """The folders below which one may look, without links, the home first: that of the user, the hub's cache, and those
    that hold a declared model's folder."""
    home = Path.home()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / ".cache/huggingface") / "hub")
    found = {home: None, hub.expanduser(): None}
    for spec in specs:
        if spec.source.startswith(("/", "~")):
            folder = Path(spec.source).expanduser()
            # Its neighbours are what people look for; but nobody means the whole machine.
            found[folder.parent if folder.parent.parent != folder.parent else folder] = None
    resolved = (_resolved(folder) for folder in found)
    usable = (one for one in resolved if one is not None and one != Path(one.anchor) and os.access(one, os.X_OK))
    return list(dict.fromkeys(usable))


def start(allowed: Sequence[Path]) -> FolderList:
    """The roots, but for those that lie in another one and are not hidden there."""
    shown = [
        root
        for root in allowed
        if not any(
            root != other and root.is_relative_to(other) and not _hidden(root.relative_to(other)) for other in allowed
        )
    ]
    views = [FolderView(name=str(root), path=str(root)) for root in shown]
    return FolderList(path=None, parent=None, source=None, weights=None, folders=views, left_out=0)


def browse(path: str, allowed: Sequence[Path]) -> FolderList:
    """What is in a folder. Raises ShoalError: 400 for what is no folder's path, 403 outside the roots and for a folder
    that may not be read, 404 for one that is not there."""
    folder = _inside(path, allowed)
    try:
        with os.scandir(folder) as entries:
            seen = list(islice(entries, MOST_READ + 1))
    except PermissionError:
        raise ShoalError(
            f"{folder} may not be read by the user that Shoal runs as; give that user the right to, or name another",
            status=403,
            code="folder_unreadable",
            param="path",
        ) from None
    except OSError as error:
        raise ShoalError(f"{folder} cannot be read: {error.strerror}", code="folder_unreadable", param="path") from None
    below = sorted((e.name for e in seen if not e.name.startswith(".") and _is_folder(e)), key=_order)
    weights = _weights(folder)
    parent = folder.parent if folder not in allowed and _allowed(folder.parent, allowed) else None
    return FolderList(
        path=str(folder),
        parent=None if parent is None else str(parent),
        source=str(folder) if weights else None,
        weights=weights,
        folders=[_view(folder / name, allowed) for name in below[:MOST_SHOWN]],
        left_out=max(0, len(below) - MOST_SHOWN),
    )


def _inside(path: str, allowed: Sequence[Path]) -> Path:
    """The folder that a path names, without links and `..`."""
    try:
        text = Path(path).expanduser()
    except RuntimeError:  # a user whose home is not known
        text = Path(path)
    if "\0" in path or not text.is_absolute():
        raise ShoalError(
            f"{path!r} is not the path of a folder; give an absolute one, or one that begins with ~", param="path"
        )
    folder = _resolved(text)
    # What is not allowed is refused alike, there or not: the answer must not tell what lies elsewhere.
    if folder is None or not _allowed(folder, allowed):
        where = ", ".join(str(root) for root in allowed) or "none, for none could be found"
        raise ShoalError(
            f"{text} is not below a folder that may be looked at here ({where}); its path can be typed as a source",
            status=403,
            code="folder_not_allowed",
            param="path",
        )
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        what = "is not a folder" if os.path.lexists(folder) else "is not there"
        raise NotFoundError(f"{folder} {what}; go back and choose another", code="folder_not_found", param="path")
    return folder


def _view(folder: Path, allowed: Sequence[Path]) -> FolderView:
    name = folder.name
    if any("\ud800" <= c <= "\udfff" for c in name):
        shown = os.fsencode(name).decode("utf-8", "replace")
        return FolderView(name=shown, path=None, problem="its name is not UTF-8, so no engine could be given it")
    target = _resolved(folder)
    if target is None or not _allowed(target, allowed):
        return FolderView(name=name, path=None, problem="a link that leads out of what may be looked at")
    if name.startswith(_REPOSITORY) and "--" in name.removeprefix(_REPOSITORY):
        snapshot = _snapshot(folder)
        weights = None if snapshot is None else _weights(snapshot)
        hub_id = name.removeprefix(_REPOSITORY).replace("--", "/", 1)
        return FolderView(name=hub_id, path=str(folder), source=hub_id if weights else None, weights=weights)
    if not os.access(folder, os.R_OK | os.X_OK):
        return FolderView(name=name, path=None, problem="it may not be read by the user that Shoal runs as")
    weights = _weights(folder)
    return FolderView(name=name, path=str(folder), source=str(folder) if weights else None, weights=weights)


def _weights(folder: Path) -> str | None:
    """The format of the weights of a folder that looks like a model; None for one that does not."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in islice(entries, MOST_INSIDE)}
    except OSError:
        return None
    if not names & _CONFIGS:
        return None
    return next((kind for end, kind in _WEIGHTS.items() if any(name.endswith(end) for name in names)), None)


def _snapshot(repository: Path) -> Path | None:
    """The folder of a cached repository's main revision, if it was downloaded."""
    try:
        # Whatever lies there must not be waited for, nor fill the memory.
        fd = os.open(repository / "refs" / "main", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            revision = (file.read(MOST_REVISION) or b"").decode().strip()
    except (OSError, ValueError):
        return None
    folder = repository / "snapshots" / revision
    return folder if revision and "/" not in revision and "\0" not in revision else None


def _allowed(folder: Path, allowed: Sequence[Path]) -> bool:
    return any(folder.is_relative_to(root) for root in allowed)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _order(name: str) -> tuple[str, str]:
    return name.casefold(), name


def _resolved(path: Path) -> Path | None:
    """Without links and `..`; None for what cannot be followed: a loop, a name that is too long."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None
