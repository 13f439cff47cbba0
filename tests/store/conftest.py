"""A store in a folder of its own, and a PostgreSQL server if this machine can run one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from shoal.store import Store

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Makes a store, by default on one and the same file; the test opens and closes it."""

    def make(
        url: str | None = None,
        *,
        history: int = 100,
        events_kept: int = 1000,
        usage_kept: int = 400,
        path: Path | None = None,
    ) -> Store:
        file = path or tmp_path / "state" / "shoal.db"
        return Store(url, file, history=history, events_kept=events_kept, usage_kept=usage_kept)

    return make


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A URL of a PostgreSQL server: `SHOAL_TEST_POSTGRESQL_URL`, or a server of our own on a Unix socket."""
    if url := os.environ.get("SHOAL_TEST_POSTGRESQL_URL"):
        yield url
        return
    found = shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)
    if found is None:
        pytest.skip("set SHOAL_TEST_POSTGRESQL_URL, or install a PostgreSQL server (no initdb found)")
    bin_dir = Path(found).parent
    user = "nobody" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="shoal-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        made = subprocess.run(
            [bin_dir / "initdb", "-D", folder / "data", "-U", "shoal", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"],
            user=user,
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if made.returncode != 0:
            pytest.skip(f"initdb failed: {made.stderr.strip()[-300:]}")
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        server = subprocess.Popen(
            [bin_dir / "postgres", "-D", folder / "data", *options],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"postgresql+psycopg://shoal@/postgres?host={folder}"
            _wait_until_ready(url, server)
            yield url
        finally:
            server.terminate()  # waits for sessions to end; all of ours are closed
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", "")).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.skip("the PostgreSQL server did not start")
            time.sleep(0.1)


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    name = f"shoal_{os.getpid()}_{time.time_ns()}"
    plain = postgres_server.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    head, _, options = postgres_server.partition("?")
    yield f"{head.rpartition('/')[0]}/{name}" + (f"?{options}" if options else "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Each kind of database in turn: None is SQLite in the state folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres")
