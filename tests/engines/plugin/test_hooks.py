"""A vLLM that is not as expected stops the start, and says where; told with modules that stand in for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from shoal.engines.vllm.elastic import NEWEST, OLDEST, UnsupportedVersionError
from shoal.engines.vllm.plugin import hooks
from shoal.engines.vllm.plugin.hooks import Hook, HookError, verify, verify_fields

VERSION = f"{NEWEST[0]}.{NEWEST[1]}.1+cu130"
HOOK = Hook("pretended_vllm.worker", "Worker.sleep", ("self", "level"))


class Worker:
    """Stands in for vLLM's."""

    state = "ready"

    def sleep(self, level: int = 1) -> None: ...

    def sleep_more(self, level: int = 1, mode: str = "abort") -> None: ...

    def sleep_otherwise(self, depth: int = 1) -> None: ...

    def sleep_as_told(self, *args: object, **kwargs: object) -> None: ...

    def sleep_shortly(self, *a: object, **k: object) -> None: ...

    def sleep_by_words(self, **kwargs: object) -> None: ...


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package, module = ModuleType("pretended_vllm"), ModuleType("pretended_vllm.worker")
    module.Worker = Worker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretended_vllm", package)
    monkeypatch.setitem(sys.modules, "pretended_vllm.worker", module)
    return module


@pytest.mark.parametrize("name", ["sleep", "sleep_more", "sleep_as_told", "sleep_shortly"])
def test_what_is_as_expected_or_takes_anything_passes(vllm: ModuleType, name: str) -> None:
    assert verify((Hook(HOOK.module, f"Worker.{name}", HOOK.takes),), VERSION) == NEWEST


@pytest.mark.parametrize(
    ("hook", "how"),
    [
        (Hook("pretended_vllm.gone", "Worker.sleep"), "is missing"),
        (Hook(HOOK.module, "Gone.sleep"), "is missing"),
        (Hook(HOOK.module, "Worker.wake", ("self",)), "is missing"),
        (Hook(HOOK.module, "Worker.state", ("self",)), "is not a function"),
        (Hook(HOOK.module, "Worker.sleep_otherwise", ("self", "level")), r"takes \(self, depth\), not \(self, level\)"),
        (Hook(HOOK.module, "Worker.sleep", ("self", "level", "mode")), r"takes \(self, level\), not"),
        (Hook(HOOK.module, "Worker.sleep_by_words", ("self", "level")), r"takes \(self, kwargs\), not"),
    ],
)
def test_what_is_not_as_expected_is_named_with_the_version(vllm: ModuleType, hook: Hook, how: str) -> None:
    with pytest.raises(HookError, match=how) as raised:
        verify((HOOK, hook), VERSION)
    message = str(raised.value)
    assert f"{hook.module}:{hook.name}" in message
    assert VERSION in message
    assert "elastic: off" in message, "it says what to do"


def test_a_hook_that_need_only_exist_may_be_anything(vllm: ModuleType) -> None:
    verify((Hook(HOOK.module, "Worker.state"),), VERSION)


@pytest.mark.parametrize(
    "version", ["0.0.1", f"{OLDEST[0]}.{OLDEST[1] - 1}.9", f"{NEWEST[0]}.{NEWEST[1] + 1}.0", "dev", ""]
)
def test_a_version_out_of_range_is_refused_before_anything_is_looked_at(version: str) -> None:
    with pytest.raises(UnsupportedVersionError, match="supports vLLM"):
        verify((Hook("nowhere", "nothing"),), version)


@pytest.mark.parametrize("group", [hooks.WORKER_HOOKS, hooks.SCHEDULER_HOOKS])
def test_without_vllm_the_first_hook_is_named(group: tuple[Hook, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for hook in group:
        # None makes an import fail, should there be a vLLM.
        monkeypatch.setitem(sys.modules, hook.module, None)
    with pytest.raises(HookError, match=group[0].name):
        verify(group, VERSION)


@pytest.mark.parametrize("group", [hooks.WORKER_HOOKS, hooks.SCHEDULER_HOOKS])
def test_every_hook_is_checked(group: tuple[Hook, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one are there: the one that is not is found, whichever it is."""
    for missing in group:
        with monkeypatch.context() as patch:
            for hook in group:
                _provide(patch, hook, without=missing)
            with pytest.raises(HookError, match=missing.name):
                verify(group, VERSION)
    with monkeypatch.context() as patch:
        for hook in group:
            _provide(patch, hook)
        assert verify(group, VERSION) == NEWEST


def _provide(patch: pytest.MonkeyPatch, hook: Hook, without: Hook | None = None) -> None:
    package = ""
    for part in hook.module.split("."):
        package = f"{package}.{part}" if package else part
        if not isinstance(sys.modules.get(package), _Pretended):
            patch.setitem(sys.modules, package, _Pretended(package))
    if hook == without:
        return
    owner: object = sys.modules[hook.module]
    *outer, name = hook.name.split(".")
    for part in outer:
        if not hasattr(owner, part):
            setattr(owner, part, SimpleNamespace())
        owner = getattr(owner, part)
    setattr(owner, name, _function(hook.takes))


class _Pretended(ModuleType):
    pass


def _function(takes: tuple[str, ...]) -> Callable[..., object]:
    found: Callable[..., object] = eval(f"lambda {', '.join(takes)}: None")
    return found


def test_fields_are_looked_for_one_by_one() -> None:
    pool = SimpleNamespace(**dict.fromkeys(hooks.POOL_FIELDS, None))
    verify_fields(pool, hooks.POOL_FIELDS, VERSION)
    for name in hooks.POOL_FIELDS:
        some = SimpleNamespace(**dict.fromkeys(set(hooks.POOL_FIELDS) - {name}, None))
        with pytest.raises(HookError, match=rf"SimpleNamespace\.{name} is missing") as raised:
            verify_fields(some, hooks.POOL_FIELDS, VERSION)
        assert VERSION in str(raised.value)
