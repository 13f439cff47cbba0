"""Why vLLM ended, from the end of its log. The messages were collected by starting 0.32 wrongly on purpose.

vLLM prints the cause in the process where it happened and again, wrapped, in each process above it; the wrapping
("Engine core initialization failed. See root cause above") says nothing, so rules look for causes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Exit, Failure


@dataclass(frozen=True, slots=True)
class _Rule:
    """If `pattern` is in the log, the failure is `code`. Messages may use the pattern's groups and `{source}`."""

    pattern: re.Pattern[str]
    code: str
    message: str
    hint: str


def _rule(pattern: str, code: str, message: str, hint: str) -> _Rule:
    return _Rule(re.compile(pattern, re.MULTILINE), code, message, hint)


# The first that matches wins: causes before their consequences.
_RULES = (
    _rule(
        r"^(?:vllm|main\.py)(?: serve)?: error: "
        r"(?:unrecognized arguments: (?P<unknown>.{1,200})|argument (?P<bad>.{1,200}))",
        "bad_argument",
        "vLLM refused an argument: {unknown}{bad}.",
        "Correct `args` of the model; `vllm serve --help=all` in its environment lists what there is.",
    ),
    _rule(
        r"gated repo|Access to model .{1,200} is restricted",
        "gated_model",
        "{source} is gated on the Hugging Face hub.",
        "Ask for access on its page, then give the model your token: env HF_TOKEN.",
    ),
    _rule(
        r"is not a local folder and is not a valid model identifier|Repo(?:sitory)? ?Not ?Found|404 Client Error",
        "source_not_found",
        "There is no model {source} on the Hugging Face hub.",
        "Check the spelling of `source`; a private model needs env HF_TOKEN.",
    ),
    _rule(
        r"40[13] Client Error",
        "gated_model",
        "The Hugging Face hub refused access to {source}.",
        "Check the token of the model's env HF_TOKEN, and ask for access on the model's page.",
    ),
    _rule(
        r"We couldn't connect to 'https?://|LocalEntryNotFoundError|Cannot reach https?://|"
        r"outgoing traffic has been disabled",
        "source_unreachable",
        "{source} is not on this machine and the Hugging Face hub could not be reached.",
        "Check the network, or download the model elsewhere and give its folder as `source`.",
    ),
    _rule(
        r"Model architectures \[(?P<architecture>.{1,200}?)\] are not supported|"
        r"(?P<kind>The checkpoint you are trying to load has model type .{1,80}) but Transformers does not recognize",
        "unsupported_architecture",
        "This vLLM cannot run {source}: {architecture}{kind} is not supported.",
        "Use an environment with a newer vLLM (shoal engines ls), or another model.",
    ),
    _rule(
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<longest>\d+)",
        "context_too_long",
        "A context of {asked} tokens was asked for, but the model reaches {longest}.",
        "Set `context_length` to {longest} or less.",
    ),
    _rule(
        r"max seq len \((?P<length>\d+)\), \(?(?P<needed>[\d.]+ GiB) KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<free>[\d.]+ GiB)\)"
        r"(?:.*?estimated maximum model length is (?P<possible>\d+))?",
        "context_too_long",
        "A context of {length} tokens needs {needed} of KV cache, and there are {free}.",
        "Set a shorter `context_length`{possible}, or give more `kv_cache_memory`.",
    ),
    _rule(
        r"No available memory for the cache blocks",
        "out_of_memory",
        "The weights of {source} leave no memory for KV cache.",
        "Unload another model of the device, use a larger one, or split the model with `tensor_parallel`.",
    ),
    _rule(
        r"Free memory on device \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than desired .{1,80}"
        r"\([\d.]+, (?P<wanted>[\d.]+) GiB\)",
        "out_of_memory",
        "The device has {free} GiB free at the start, less than the {wanted} GiB that vLLM was to use.",
        "Unload another model of the device, or give `kv_cache_memory`.",
    ),
    _rule(
        r"Available memory on node \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on kv cache allocation is less than requested "
        r"memory for kv \((?P<wanted>[\d.]+)",
        "out_of_memory",
        "{wanted} GiB of KV cache were asked for, but the machine has {free} GiB free.",
        "Set a smaller `kv_cache_memory`, or unload another model.",
    ),
    _rule(
        r"Available memory on node \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than desired",
        "out_of_memory",
        "The machine has {free} GiB free, less than vLLM was to use.",
        "Set `kv_cache_memory`, or unload another model.",
    ),
    _rule(
        r"warming up needs (?P<wanted>\d+ MiB) of KV cache on \S+, "
        r"(?:but the memory broker on \S+ gave|which another program took)",
        "out_of_memory",
        "Warming up takes {wanted} of KV cache, and less than that could be had of the device.",
        "Unload another model of the device, lower a neighbour's `floor`, or set a smaller `memory_headroom`.",
    ),
    _rule(
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|"
        r"DefaultCPUAllocator: can't allocate memory|\bMemoryError\b|Cannot allocate memory",
        "out_of_memory",
        "vLLM ran out of memory.",
        "Unload another model of the device, or set a smaller `kv_cache_memory` or `context_length`.",
    ),
    _rule(
        r"Address already in use|EADDRINUSE",
        "port_taken",
        "The engine's address is taken{port}.",
        "Choose another `port`, or leave it out: Shoal then uses a Unix socket of its own.",
    ),
    _rule(
        r"SafetensorError: (?P<detail>.{1,200})|PytorchStreamReader failed",
        "source_damaged",
        "A weight file of {source} is damaged{detail}.",
        "Fetch the model again; files that end too early are the usual cause.",
    ),
    _rule(
        r"Cannot find any model weights with|No model weights found",
        "source_not_found",
        "{source} holds no weights.",
        "Fetch the model again, or give another folder as `source`.",
    ),
    _rule(
        r"Invalid repository ID or local directory specified|Repo id must be in the form",
        "source_not_found",
        "{source} is not a model: there is no config.json.",
        "Give the folder that holds config.json, or a Hugging Face hub id such as org/name.",
    ),
    _rule(
        r"Value error, (?P<refused>[^\n\[]{1,300}?)\.? *(?:\[type=|$)",
        "bad_argument",
        "vLLM refused the settings: {refused}.",
        "Correct the model's settings or `args`.",
    ),
    _rule(
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer|Unable to load tokenizer",
        "source_not_found",
        "{source} has no tokenizer that loads.",
        "Add its tokenizer.json and tokenizer_config.json, or give `--tokenizer` in `args`.",
    ),
    _rule(
        r"CUDA driver version is insufficient|no kernel image is available|NVIDIA driver on your system is too old",
        "driver_mismatch",
        "The GPU or its driver does not fit this vLLM build.",
        "Update the NVIDIA driver, or use an environment with a build for it (shoal engines ls).",
    ),
    _rule(
        r"No module named '?vllm|PackageNotFoundError|operator torchvision::nms does not exist",
        "engine_broken",
        "The engine environment is damaged.",
        "Look at it with `shoal engines check`; make it anew with `shoal engines install NAME --force`.",
    ),
)
_DIED = re.compile(r"Worker proc (?P<worker>\S+) died unexpectedly|Engine core proc (?P<core>\S+) died unexpectedly")
_LAST_ERROR = re.compile(r"(?:^|[\s\]])(?P<kind>[A-Za-z_.]*(?:Error|Exception)): (?P<text>\S.*)$")
_NOISE = ("Engine core initialization failed", "WorkerProc initialization failed", ") WARNING ", ") INFO ")
_LINES = 2000
_WIDTH = 4000


def explain(spec: ModelSpec, log: Sequence[str], exit: Exit) -> Failure:
    """The failure in one sentence, and what to do. Never raises, whatever the log holds."""
    lines = [line[:_WIDTH] for line in log[-_LINES:]]
    text = "\n".join(lines)
    for rule in _RULES:
        if match := rule.pattern.search(text):
            return Failure(rule.code, _fill(rule.message, match, spec), _fill(rule.hint, match, spec))
    return _unknown(lines, text, exit)


def _fill(sentence: str, match: re.Match[str], spec: ModelSpec) -> str:
    words = {name: (value or "").strip() for name, value in match.groupdict().items()}
    if words.get("possible"):
        words["possible"] = f" ({words['possible']} would fit)"
    if words.get("detail"):
        words["detail"] = f" ({words['detail']})"
    words.setdefault("detail", "")
    words["port"] = f": port {spec.port} of this machine's loopback" if spec.port else ""
    return sentence.format(source=spec.source, **words)


def _unknown(lines: Sequence[str], text: str, exit: Exit) -> Failure:
    if exit.signal == 9:
        return Failure(
            "engine_crashed",
            "vLLM was killed (signal 9).",
            "If nobody ended it by hand, the machine ran out of memory: see `dmesg`, and give it less.",
        )
    if match := _DIED.search(text):
        return Failure(
            "engine_crashed",
            f"vLLM's process {match['worker'] or match['core']} died.",
            "If nobody ended it by hand, the machine may have run out of memory: see `dmesg` and the log.",
        )
    how = f"vLLM {exit}"
    error = _last_error(lines)
    if error:
        return Failure("engine_crashed", f"{how}: {error}", "The instance's log has the whole story.")
    return Failure("engine_crashed", f"{how} without a message.", "The instance's log has its last words.")


def _last_error(lines: Sequence[str]) -> str:
    for line in reversed(lines):
        if not any(noise in line for noise in _NOISE) and (match := _LAST_ERROR.search(line)):
            return f"{match['kind'].rpartition('.')[2]}: {match['text']}"[:300]
    return ""
