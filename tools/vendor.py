#!/usr/bin/env python3
"""Copy the libraries that the page uses out of `tools/node_modules` into the page's `vendor` folder.

`npm ci` fetches exactly what `package-lock.json` names and checks each package against the hash there; this script then
takes the few files that a browser needs, with their licences, and writes `manifest.json`: of every file the package,
version, the package's hash and the file's own. Nothing is built: bare imports become relative ones, because an import
map would be an inline script, uPlot's script gets an export, and for `tsc` each module gets a line of declarations.

    python tools/vendor.py            fetch and write
    python tools/vendor.py --check    no network: whether the files are those of the manifest and the lock
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent
VENDOR = TOOLS.parent / "src" / "shoal" / "dashboard" / "static" / "vendor"
MANIFEST = VENDOR / "manifest.json"


@dataclass(frozen=True)
class Take:
    """A file of a package, and the name that it gets. `export`: a global that is to become the default export. `types`:
    what its declarations, for `tsc`, export."""

    package: str
    file: str
    name: str
    types: str = ""
    export: str = ""


FILES = (
    Take("preact", "dist/preact.mjs", "preact.js", '* from "preact"'),
    Take("preact", "hooks/dist/hooks.mjs", "hooks.js", '* from "preact/hooks"'),
    Take("@preact/signals-core", "dist/signals-core.mjs", "signals-core.js", '* from "@preact/signals-core"'),
    Take("@preact/signals", "dist/signals.mjs", "signals.js", '* from "@preact/signals"'),
    Take("htm", "dist/htm.mjs", "htm.js", '{ default } from "htm"'),
    Take("uplot", "dist/uPlot.iife.min.js", "uplot.js", '{ default } from "uplot"', export="uPlot"),
    Take("uplot", "dist/uPlot.min.css", "uplot.css"),
)
_LOCAL = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
_IMPORT = re.compile(r"""(from\s*|import\s*)(["'])([^"'./][^"']*)\2""")


def relative(text: str) -> str:
    """`text` of a module with its bare imports made relative. Raises SystemExit for one that is not vendored."""

    def local(match: re.Match[str]) -> str:
        if match[3] not in _LOCAL:
            sys.exit(f"vendor.py: {match[3]} is imported and not vendored; add it to FILES")
        return f'{match[1]}"{_LOCAL[match[3]]}"'

    return _IMPORT.sub(local, text)


def content(take: Take) -> str:
    """What is written of a file of an installed package."""
    text = (TOOLS / "node_modules" / take.package / take.file).read_text(encoding="utf-8")
    text = re.sub(r"\n?/[/*]# sourceMappingURL=.*", "", text).rstrip() + "\n"
    if take.export:
        return f"{text}export default {take.export};\n"
    return relative(text) if take.name.endswith(".js") else text


def digest(data: bytes) -> str:
    """As in a manifest."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


def locked() -> dict[str, Any]:
    """What the lock says of each package."""
    packages = json.loads((TOOLS / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    return {path.removeprefix("node_modules/"): facts for path, facts in packages.items() if path}


def write() -> None:
    """Fetch the packages and write the files."""
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=TOOLS, check=True)
    VENDOR.mkdir(parents=True, exist_ok=True)
    lock, files = locked(), []
    written = {"manifest.json"}
    for take in FILES:
        data = content(take).encode()
        (VENDOR / take.name).write_bytes(data)
        files.append(_entry(take.name, take.package, take.file, lock, data))
        written.add(take.name)
        if take.types:
            declared = take.name.replace(".js", ".d.ts")
            data = f"export {take.types};\n".encode()
            (VENDOR / declared).write_bytes(data)
            files.append(_entry(declared, take.package, "", lock, data))
            written.add(declared)
    for package in dict.fromkeys(take.package for take in FILES):
        name = f"LICENSE-{package.removeprefix('@').replace('/', '-')}.txt"
        data = (TOOLS / "node_modules" / package / "LICENSE").read_bytes()
        (VENDOR / name).write_bytes(data)
        files.append(_entry(name, package, "LICENSE", lock, data))
        written.add(name)
    for stale in VENDOR.iterdir():
        if stale.name not in written:
            stale.unlink()
    MANIFEST.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def _entry(name: str, package: str, file: str, lock: dict[str, Any], data: bytes) -> dict[str, str]:
    facts = lock[package]
    return {
        "name": name,
        "package": package,
        "version": facts["version"],
        "license": facts["license"],
        "file": file,
        "integrity": facts["integrity"],
        "digest": digest(data),
    }


def faults() -> list[str]:
    """What in the folder is not as the manifest and the lock say."""
    lock, found = locked(), []
    files = json.loads(MANIFEST.read_text(encoding="utf-8"))["files"]
    for entry in files:
        path, facts = VENDOR / entry["name"], lock.get(entry["package"], {})
        if not path.is_file() or digest(path.read_bytes()) != entry["digest"]:
            found.append(f"{entry['name']} is not as it was written")
        if (facts.get("version"), facts.get("integrity")) != (entry["version"], entry["integrity"]):
            found.append(f"{entry['name']} is of another {entry['package']} than the lock names")
    known = {entry["name"] for entry in files} | {MANIFEST.name}
    return found + [f"{path.name} is not in the manifest" for path in VENDOR.iterdir() if path.name not in known]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Vendor the page's libraries.")
    parser.add_argument("--check", action="store_true", help="check the files that are there; no network")
    if not parser.parse_args().check:
        write()
    elif found := faults():
        sys.exit("\n".join([*found, "run: python tools/vendor.py"]))


if __name__ == "__main__":
    main()
