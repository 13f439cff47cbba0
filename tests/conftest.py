"""What every test may rely on: Ctrl-C works, how thorough properties are, and that no failure goes unsaid."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

import pytest
from hypothesis import HealthCheck, settings

# Started in the background of a script, a process ignores Ctrl-C and hands that down to its children; tests that send
# it would wait for ever.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start thousands of processes: each that may not keep what it compiled compiles all of Shoal anew, for a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No test is to fail because a machine is busy.
settings.register_profile("shoal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shoal")

# `make test-nightly`: as many examples for each property that does not name a number of its own.
if examples := os.environ.get("SHOAL_TEST_EXAMPLES"):
    settings.register_profile("nightly", settings.get_profile("shoal"), max_examples=int(examples))
    settings.load_profile("nightly")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Beyond the page's tests nothing runs in this thread between two tests. But Playwright marks its loop as running
    there while it has a browser. Where a page's test broke off the mark may outlive the browser, and no test with a
    loop of its own could run any more."""
    if "dashboard" not in item.path.parts and asyncio._get_running_loop() is not None:
        asyncio._set_running_loop(None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say of tests that were tried again why: one that passes in the end leaves no other trace of it."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"tried again: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
