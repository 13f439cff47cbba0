"""What every test may rely on: Ctrl-C works."""

from __future__ import annotations

import signal
import threading

# Started in the background of a script, a process ignores Ctrl-C and hands that down to its children; tests that send
# it would wait for ever.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
