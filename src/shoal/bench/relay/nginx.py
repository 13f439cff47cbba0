"""nginx as an upstream that answers at once, and as the proxy to compare with: its configuration. Pure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from shoal.net import TcpAddress, UnixAddress

from . import bodies

_FRAME = """\
daemon off;
worker_processes 1;
{user}error_log {folder}/error.log warn;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{servers}
}}
"""

_ANSWERING = """\
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    listen unix:{socket} backlog=2048;
    default_type application/json;
    location / {{ return 200 '{answer}'; }}
  }}"""

_PASSING = """\
  upstream u{port} {{
    server {upstream};
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://u{port};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}"""


def binary() -> str | None:
    """Where nginx is, if this machine has it; Debian keeps it where only root looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def command(nginx: str, config: Path) -> list[str]:
    """The command that runs `config`; everything it writes lies beside it."""
    return [nginx, "-p", str(config.parent), "-c", str(config), "-e", str(config.parent / "error.log")]


def answering(folder: Path, port: int, socket: Path) -> str:
    """The configuration of a server on `port` and `socket` that answers everything with a chat completion."""
    return _frame(folder, _ANSWERING.format(port=port, socket=socket, answer=bodies.answer().decode()))


def passing(folder: Path, upstreams: Mapping[int, UnixAddress | TcpAddress]) -> str:
    """The configuration of a proxy from each port to the upstream that it is given with, with kept connections."""
    servers = (_PASSING.format(port=port, upstream=_place(address)) for port, address in upstreams.items())
    return _frame(folder, "\n".join(servers))


def _place(address: UnixAddress | TcpAddress) -> str:
    return str(address) if isinstance(address, UnixAddress) else f"{address.host}:{address.port}"


def _frame(folder: Path, servers: str) -> str:
    # Started as root, nginx would run its worker as nobody, who may not enter the folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    return _FRAME.format(folder=folder, user=user, servers=servers)
