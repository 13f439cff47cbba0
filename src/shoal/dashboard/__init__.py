"""The web page: static ES modules that use the admin API. Nothing is built, nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

STATIC: Path = Path(__file__).parent / "static"
"""The folder to serve: `index.html` at `/`, everything below `/static/`."""
