"""The page and the endpoint behind a path prefix, through a real nginx with the configuration of the documentation."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from playwright.sync_api import Page, expect

from shoal.bench.relay.nginx import binary, command
from tests.dashboard.test_sign_in import ANN, sign_in
from tests.system.harness import Shoal, a_shoal, until

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
FRAME = """\
daemon off;
master_process off;
error_log {folder}/error.log warn;
pid {folder}/nginx.pid;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{server}
}}
"""


def documented(port: int, upstream: str) -> str:
    """The server of the documentation, without TLS, before another Shoal, on a port that this process has bound."""
    found = re.search(r"```nginx\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    server = re.sub(r"(?m)^\s*ssl_.*\n", "", found[1])
    server = server.replace("listen 443 ssl;", f"listen 127.0.0.1:{port} reuseport;")
    return server.replace("http://127.0.0.1:8000/", f"{upstream}/")


@contextmanager
def proxied(shoal: Shoal, folder: Path) -> Iterator[str]:
    """The address under which nginx has Shoal."""
    nginx = binary()
    if nginx is None:
        pytest.skip("no nginx on this machine")
    with socket.socket() as held:  # bound, so that no other takes the port; not listening, so that all go to nginx
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        config = folder / "nginx.conf"
        config.write_text(FRAME.format(folder=folder, server=documented(port, shoal.url)))
        running = subprocess.Popen(command(nginx, config), env={**os.environ, "LC_ALL": "C"})
        address = f"http://127.0.0.1:{port}/shoal"

        def answers() -> bool:
            assert running.poll() is None, (folder / "error.log").read_text()
            try:
                return httpx2.get(f"{address}/health/live").status_code == 200
            except httpx2.TransportError:
                return False

        try:
            until(answers, "nginx")
            yield address
        finally:
            running.terminate()
            running.wait()


def test_the_page_and_the_endpoint_work_behind_a_prefix(page: Page, tmp_path: Path) -> None:
    with a_shoal(simulated_devices=["8GiB"]) as shoal:
        shoal.start()
        shoal.add("toy", "--device-memory", "1GiB", "--enable-sleep-mode")
        with proxied(shoal, tmp_path) as address:
            assert httpx2.get(f"{address}/api/v1/models").status_code == 403, "a proxy lets others in"
            with shoal.client as client:
                client.set_user("ann", role="admin", password=ANN)
            page.goto(f"{address}/")
            sign_in(page, "ann", ANN)
            badge = page.locator(".row .badge")
            page.get_by_role("button", name="Load toy", exact=True).click()
            expect(badge).to_have_attribute("data-state", "ready")
            expect(page.locator("footer code")).to_have_text(f"{address}/v1")
            endpoint = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            parts = endpoint.chat.completions.create(
                model="toy", messages=[{"role": "user", "content": "one two"}], stream=True
            )
            assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            page.get_by_role("button", name="Sleep toy", exact=True).click()
            expect(badge).to_have_attribute("data-state", "sleeping")
