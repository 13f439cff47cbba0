"""The simulated engine's command line. Names that vLLM has mean what they mean there."""

from __future__ import annotations

import argparse
import ipaddress
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

PROGRAM = "python -m shoal.engines.simulated"
MAX_NUM_SEQS = 256

_SIZE = re.compile(r"(\d+)(?:([KMGT])iB)?")
_POWER = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

FAILURES = {
    "start-exit": "print a traceback halfway through the start and exit 1",
    "oom": "fail to allocate device memory halfway through the start and exit 1",
    "bad-architecture": "refuse the model's architecture and exit 1",
    "context-too-long": "refuse the context length and exit 1",
    "crash-after": "=Ns: exit 1 hard N seconds after the start; =N: after the first token of the Nth request",
    "hang-after": "=N: after N requests, accept and never answer, /health included",
    "hang-steps": "=N: after N requests, answer /health but make no step",
    "ignore-sigterm": "stay up when asked to stop",
    "log-flood": "=N: print N lines while starting",
    "sleep-keeps-memory": "say that it sleeps and free nothing",
    "sleep-fails": "answer /sleep with 500",
    "copy-fails": "find no host memory for a copy of its weights that is kept",
    "wake-fails": "answer /wake_up with 500",
    "wake-oom": "find no memory when waking, answer 500 and exit 1",
    "canary-differs": "answer otherwise after a sleep than before",
    "dies-asleep": "=N: exit 1 N seconds after it fell asleep",
}
_VALUED = {"crash-after", "dies-asleep", "hang-after", "hang-steps", "log-flood"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the process was asked to be. Sizes in bytes, times in seconds, lengths in tokens."""

    model: str
    served_model_name: str
    uds: str | None
    host: str
    port: int
    task: str
    max_model_len: int
    model_len: int
    max_num_seqs: int
    kv_cache_tokens: int
    kv_cache_memory_bytes: int | None
    block_size: int
    simulated_block_bytes: int
    simulated_device: str
    simulated_device_size: int
    simulated_resident: bool
    tokens_per_second: float
    ttft: float
    start_seconds: float
    sleep_seconds: float
    copy_seconds: float
    slow_shutdown: float
    memory: int
    device_memory: int
    enable_sleep_mode: bool
    enable_lora: bool
    spawn_child: bool
    access_log: bool
    fail: dict[str, str] = field(default_factory=dict)

    def fails_after(self, mode: str) -> int | None:
        """The N of a `--fail MODE=N`, or None."""
        value = self.fail.get(mode, "")
        return int(value) if value.isdigit() else None

    @property
    def blocks(self) -> int:
        """Blocks of the KV cache."""
        return -(-self.kv_cache_tokens // self.block_size)

    @property
    def crash_seconds(self) -> float | None:
        """The N of `--fail crash-after=Ns`, or None."""
        value = self.fail.get("crash-after", "")
        return float(value[:-1]) if value.endswith("s") else None


def parse(argv: Sequence[str]) -> Options:
    """Options from a command line. Raises ValueError that says what is wrong with it."""
    given = _parser().parse_args(argv)
    given.fail = dict(_fault(text) for text in given.fail)
    if given.uds is None and not _is_loopback(given.host):
        raise ValueError(f"--host {given.host}: the simulated engine listens on loopback only; give 127.0.0.1")
    given.served_model_name = given.served_model_name or given.model
    given.max_model_len = given.max_model_len or given.model_len
    if given.kv_cache_memory_bytes is not None:
        given.kv_cache_tokens = given.kv_cache_memory_bytes // given.simulated_block_bytes * given.block_size
    given.kv_cache_tokens = max(given.kv_cache_tokens, given.max_model_len)
    given.simulated_device_size = given.simulated_device_size or _physical()
    if given.simulated_resident and given.simulated_block_bytes % mmap.PAGESIZE:
        size = given.simulated_block_bytes
        raise ValueError(
            f"--simulated-block-bytes {size}: with --simulated-resident it has to be a multiple of {mmap.PAGESIZE}"
        )
    return Options(**{name: getattr(given, name) for name in Options.__dataclass_fields__})


def usage() -> str:
    """The help page."""
    return _parser().format_help()


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print: the command line is also read where a print would go astray."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Speaks vLLM's HTTP without a model.", allow_abbrev=False, add_help=False
    )
    add = parser.add_argument
    add("--model", default="simulated", help="any word, shown as the model's root")
    add("--served-model-name", help="the name that requests give; default: the model")
    add("--uds", metavar="PATH", help="listen on this Unix socket")
    add("--host", default="127.0.0.1", help="loopback address to listen on")
    add("--port", type=_whole, default=8000, help="port to listen on; 0 takes a free one and prints it")
    add(
        "--task",
        choices=("generate", "embed", "transcription"),
        default="generate",
        help="embed: answer /v1/embeddings; transcription: /v1/audio/transcriptions and the websocket /v1/realtime",
    )
    add("--max-model-len", type=_positive, help="longest context; default: --model-len")
    add("--model-len", type=_positive, default=32768, help="the longest context that the model itself has")
    add("--max-num-seqs", type=_positive, default=MAX_NUM_SEQS, help="sequences that run at once; more wait")
    add("--kv-cache-tokens", type=_positive, default=262_144, help="tokens that fit before sequences are preempted")
    add("--kv-cache-memory-bytes", type=_size, help="the same in bytes, in place of --kv-cache-tokens")
    add("--block-size", type=_positive, default=16, help="tokens of a block of the KV cache")
    add("--simulated-block-bytes", type=_size, default=2 << 20, help="bytes of a block")
    add("--simulated-device", type=_key, default="host", help="elastic: the device's key at the memory broker")
    add("--simulated-device-size", type=_size, default=0, help="elastic: bytes of that device; default: the host's")
    add("--simulated-resident", action="store_true", help="elastic: really take the memory of backed blocks")
    add("--tokens-per-second", type=_seconds, default=200.0, help="of one request; 0: as fast as it goes")
    add("--ttft", type=_seconds, default=0.01, help="seconds from admission to the first token")
    add("--start-seconds", type=_seconds, default=0.0, help="how long a start takes")
    add("--sleep-seconds", type=_seconds, default=0.0, help="how long falling asleep and waking up take, each")
    add(
        "--copy-seconds",
        type=_seconds,
        default=0.0,
        help="how long copying its weights to the host takes: in the background, or in a sleep that finds no copy",
    )
    add("--slow-shutdown", type=_seconds, default=0.0, help="seconds between SIGTERM and the exit")
    add("--memory", type=_bytes, default=0, help="bytes of host memory to really use; freed while asleep")
    add("--device-memory", type=_bytes, default=0, help="bytes of device memory to report only")
    add("--enable-sleep-mode", action="store_true", help="answer /sleep, /wake_up and /is_sleeping")
    add("--enable-lora", action="store_true", help="answer /v1/load_lora_adapter and /v1/unload_lora_adapter")
    add("--spawn-child", action="store_true", help="start a process in a session of its own that ignores SIGTERM")
    add("--disable-uvicorn-access-log", dest="access_log", action="store_false", help="print no line per request")
    add(
        "--fail",
        action="append",
        default=[],
        metavar="MODE[=N]",
        help="; ".join(f"{k}: {v}" for k, v in FAILURES.items()),
    )
    for name in ("--dtype", "--tensor-parallel-size"):
        add(name, help="accepted and ignored")
    return parser


def _fault(text: str) -> tuple[str, str]:
    mode, _, value = text.partition("=")
    if mode not in FAILURES:
        raise ValueError(f"--fail {text}: there is no such failure; choose from {', '.join(FAILURES)}")
    number = value[:-1] if mode == "crash-after" and value.endswith("s") else value
    if mode in _VALUED and not re.fullmatch(r"\d{1,9}" if number == value else r"\d{1,6}(\.\d{1,6})?", number):
        raise ValueError(f"--fail {text}: needs a number, such as {mode}=3")
    if mode not in _VALUED and value:
        raise ValueError(f"--fail {text}: takes no number")
    return mode, value


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give bytes, or one such as 512MiB")
    return int(match[1]) << _POWER[match[2] or ""]


def _size(text: str) -> int:
    size = _bytes(text)
    if not 0 < size <= 2**53:
        raise argparse.ArgumentTypeError("has to be 1 to 2**53 bytes")
    return size


def _key(text: str) -> str:
    if not re.fullmatch(r'[^\x00-\x1f\x7f"\\]{1,128}', text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the key of a device, such as simulated:0")
    return text


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError("has to be 1 at least")
    return number


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.5")
    return float(text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
