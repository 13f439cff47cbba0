"""`wrk` as the load generator: its script and its command. Pure."""

from __future__ import annotations

from . import bodies
from .tally import MARK

# All that can fail is added up: a status of 400 and more counts for wrk as `status`.
_REPORT = """
done = function(summary, latency)
  local e = summary.errors
  print(string.format('MARK{"requests":%d,"seconds":%.6f,"p50_us":%d,"p99_us":%d,"failed":%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
""".replace("MARK", MARK)


def script(model: str, key: str) -> str:
    """The Lua that sends `bodies.chat(model)` with `key`, the same bytes each time, and prints what `tally` reads."""
    return (
        'wrk.method = "POST"\n'
        f"wrk.body = [==[{bodies.chat(model).decode()}]==]\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {key}"\n' + _REPORT
    )


def command(wrk: str, port: int, script: str, *, connections: int, seconds: int) -> list[str]:
    """One thread of wrk for so many whole seconds against 127.0.0.1; `script` is the file."""
    return [
        *(wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script),
        f"http://127.0.0.1:{port}{bodies.PATH}",
    ]
