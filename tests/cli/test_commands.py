"""Each command against a scripted Shoal: what it asks, what it prints, and its exit code."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.fleet.spec import ModelSpec
from tests.cli.conftest import Run
from tests.cli.scripted import GIB, ScriptedShoal, instance, memory

ODD = "🐟 [bold]نموذج[/bold]"
FAILURE = {"code": "out_of_memory", "message": "It needs 151 GiB.", "hint": "Use more devices."}


def bodies(shoal: ScriptedShoal, method: str, path: str) -> list[Any]:
    return [body for verb, where, body in shoal.requests if verb == method and where == path]


def test_add_sends_what_was_given_and_nothing_else(shoal: ScriptedShoal, run: Run) -> None:
    result = run(
        "models", "add", "m", "--source", "org/m", "--engine", "simulated", "--devices", "cuda:0,cuda:1",
        "--env", "A=b=c", "--kv-cache-memory", "1GiB", "--", "--enforce-eager", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert bodies(shoal, "POST", "/api/v1/models") == [
        {
            "name": "m", "source": "org/m", "engine": "simulated", "devices": ["cuda:0", "cuda:1"],
            "tensor_parallel": 2, "kv_cache_memory": "1GiB", "env": {"A": "b=c"},
            "args": ["--enforce-eager", "--json"],
        }
    ]  # fmt: skip
    assert "shoal load m" in result.stdout


def test_add_has_an_option_for_every_setting(run: Run) -> None:
    help_text = run("models", "add", "--help").stdout
    for field in set(ModelSpec.model_fields) - {"name", "args"}:
        assert f"--{field.replace('_', '-')}" in help_text, field


def test_add_says_nothing_of_what_was_not_given(shoal: ScriptedShoal, run: Run) -> None:
    for args, given in (
        ([], {}),
        (["--no-on-request", "--max-concurrency", "3"], {"on_request": False, "max_concurrency": 3}),
        (["--on-request"], {"on_request": True}),
    ):
        shoal.models.clear()
        assert run("models", "add", "m", "--source", "org/m", *args).exit_code == 0
        assert bodies(shoal, "POST", "/api/v1/models")[-1] == {"name": "m", "source": "org/m", **given}


def test_add_again_is_fine_and_other_settings_conflict(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", source="toy")
    again = run("models", "add", "m", "--source", "toy")
    assert again.exit_code == 0
    assert "already" in again.stdout
    assert run("models", "add", "m", "--source", "other").exit_code == 5


def test_set_changes_the_share_and_nothing_else(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", ceiling=4 * GIB)
    result = run("models", "set", "m", "--priority", "7", "--ceiling", "none")
    assert result.exit_code == 0, result.stderr
    assert bodies(shoal, "PATCH", "/api/v1/models/m") == [{"ceiling": None, "priority": 7}]
    assert "m: floor 0 B, no ceiling, priority 7." in result.stdout
    assert run("models", "set", "m").exit_code == 2
    assert run("models", "set", "other", "--priority", "7").exit_code == 4


def test_add_makes_a_local_folder_absolute(
    shoal: ScriptedShoal, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("models", "add", "m", "--source", "weights").exit_code == 0
    assert bodies(shoal, "POST", "/api/v1/models")[0]["source"] == str(tmp_path / "weights")


@pytest.mark.parametrize(
    "args",
    [
        ["models", "add", "m"],
        ["models", "add", "m", "--source", "x", "--env", "novalue"],
        ["models", "add", "m", "--source", "x", "stray"],
        ["models", "add", "m", "--source", "x", "--port", "many"],
        ["ps", "--bogus"],
        ["nonsense"],
        ["load"],
        ["load", "m", "--instances", "0"],
        ["ps", "--url", "not an address"],
        ["chat", "m", "--json"],
    ],
)
def test_wrong_usage_exits_2_without_a_traceback(shoal: ScriptedShoal, run: Run, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.output


def test_usage_errors_are_json_when_json_is_wanted(run: Run) -> None:
    result = run("ps", "--bogus", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["code"] == "usage"
    assert result.stdout == ""


def test_names_are_text_never_markup(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add(ODD, instance("odd-1", ODD, "failed", failure=FAILURE | {"message": "[red]no[/red] :fish:"}))
    for args in (["models", "ls"], ["models", "show", ODD], ["ps"]):
        result = run(*args)
        assert result.exit_code == 0, result.output
        assert "[bold]" in result.stdout
        assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "[red]no[/red] :fish:" in run("ps").stdout
    assert "%2F" in next(path for _, path, _ in shoal.requests if "show" not in path and "models/" in path)


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (["models", "ls"], "models"),
        (["models", "show", "m"], "spec"),
        (["ps"], "instances"),
        (["devices"], "devices"),
        (["events"], "events"),
        (["status"], "version"),
        (["reload"], "added"),
        (["logs", "m"], "lines"),
        (["load", "m"], "instances"),
        (["unload", "m"], "instances"),
        (["models", "add", "m", "--source", "toy"], "spec"),
        (["models", "rm", "m", "--unload"], "removed"),
        (["config", "show"], "port"),
        (["config", "show", "--live"], "port"),
        (["config", "schema"], "properties"),
        (["config", "check"], "ok"),
        (["version"], "version"),
        (["doctor"], "checks"),
        (["chat", "m", "hi"], "content"),
    ],
)
def test_json_is_pure(shoal: ScriptedShoal, run: Run, args: list[str], key: str) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    result = run(*args, "--json")
    assert key in json.loads(result.stdout)


def test_errors_are_json_with_the_right_exit_code(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("busy", instance("busy-1", "busy", "ready"))
    for args, code, word in [
        (["load", "nosuch"], 4, "model_not_found"),
        (["logs", "nosuch"], 4, "not_found"),
        (["models", "rm", "busy"], 5, "loaded"),
        (["ps", "--url", "http://127.0.0.1:9"], 3, "unreachable"),
        (["config", "check", "/nonexistent.yaml"], 1, "invalid_settings"),
    ]:
        result = run(*args, "--json")
        assert result.exit_code == code, args
        assert json.loads(result.stderr)["error"]["code"] == word
        assert result.stdout == ""


def test_nothing_listening_says_what_to_do(run: Run) -> None:
    result = run("ps", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 3
    words = " ".join(result.stderr.split())
    assert "nothing listens at http://127.0.0.1:9" in words
    assert "shoal serve" in words
    assert "SHOAL_URL" in words


def test_load_follows_until_ready(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", desired=0)
    result = run("load", "m", "--instances", "1")
    assert result.exit_code == 0, result.output
    assert "waits for cuda:0" in result.stderr
    assert "loading weights (40 %)" in result.stderr
    assert "m is ready on cuda:0" in result.stdout
    assert bodies(shoal, "POST", "/api/v1/models/m/load") == [{"instances": 1}]
    again = run("load", "m")
    assert again.exit_code == 0
    assert "ready" in again.stdout


def test_load_survives_a_lost_event_stream(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", desired=0)
    shoal.drop_events_after = 1
    result = run("load", "m")
    assert result.exit_code == 0, result.output
    assert shoal.event_connections == 2


def test_load_no_wait_does_not_follow(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", desired=0)
    result = run("load", "m", "--no-wait")
    assert result.exit_code == 0
    assert "queued" in result.stdout
    assert shoal.event_connections == 0


def test_a_failed_load_shows_why_what_to_do_and_the_log(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("old", "m", "failed", failure=FAILURE | {"message": "an older failure"}), desired=0)
    shoal.stages = [{"state": "starting"}, {"state": "failed", "failure": FAILURE}]
    shoal.logs["i-1"] = [f"line {n}" for n in range(40)] + ["\x1b[31mOutOfMemoryError\x1b[0m"]
    result = run("load", "m")
    assert result.exit_code == 1
    assert "It needs 151 GiB." in result.stderr
    assert "Use more devices." in result.stderr
    assert "line 39" in result.stderr
    assert "OutOfMemoryError" in result.stderr
    assert "line 2\n" not in result.stderr
    assert "\x1b" not in result.stderr
    assert "older failure" not in result.stderr
    as_json = run("load", "m", "--json")
    assert as_json.exit_code == 1
    error = json.loads(as_json.stderr)["error"]
    assert (error["code"], error["hint"]) == ("out_of_memory", "Use more devices.")
    assert as_json.stdout == ""


def test_a_crash_that_is_tried_again_does_not_end_a_load(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", desired=0)
    shoal.stages = [
        {"state": "starting"},
        {"state": "failed", "failure": FAILURE, "restart_at": time.time() + 1},
        {"state": "ready", "failure": None, "restart_at": None},
    ]
    result = run("load", "m")
    assert result.exit_code == 0, result.output


def test_an_unload_while_loading_ends_the_wait(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", desired=0)
    shoal.stages = [{"state": "starting"}, {"state": "stopped", "reason": "unloaded by a user"}]
    result = run("load", "m")
    assert result.exit_code == 1
    assert "was stopped while it loaded" in result.stderr
    assert "unloaded by a user" in result.stderr


def test_unload_waits_until_nothing_runs(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    result = run("unload", "m", "--force")
    assert result.exit_code == 0
    assert "m is unloaded" in result.stdout
    assert shoal.models["m"]["instances"] == []
    assert bodies(shoal, "POST", "/api/v1/models/m/unload") == [{"force": True}]


def test_what_could_not_be_saved_is_said(shoal: ScriptedShoal, run: Run) -> None:
    shoal.warning = "not saved: the disk is full"
    result = run("models", "add", "m", "--source", "toy")
    assert result.exit_code == 0
    assert "warning: not saved: the disk is full" in result.stderr


def test_empty_lists_name_the_next_step(shoal: ScriptedShoal, run: Run) -> None:
    shoal.devices = []
    assert "shoal models add" in run("models", "ls").stdout
    assert "shoal load" in run("ps").stdout
    assert "shoal doctor" in run("devices").stdout
    assert run("events").exit_code == 0


def test_ps_and_devices_show_what_runs(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready", memory=memory(held={"host": 3 * GIB})))
    shoal.add("e", instance("e-1", "e", "ready", memory=memory(lease=2 * GIB, used=GIB, waiting=4)))
    shoal.stopped = [instance("m-0", "m", "stopped")]
    assert "3.0 GiB" in run("ps").stdout
    assert "KV 1.0 GiB of 2.0 GiB, 4 waiting" in " ".join(run("ps").stdout.split())
    assert "m-0" not in run("ps").stdout
    assert "m-0" in run("ps", "--all").stdout
    shown = run("devices").stdout
    assert "60.0 GiB of 140.0 GiB" in shown
    assert "42 % busy" in shown


def test_logs_by_model_and_by_instance(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "failed"), instance("m-2", "m", "ready"))
    shoal.add("never")
    shoal.logs = {"m-1": ["one"], "m-2": ["a", "b", "c"]}
    assert run("logs", "m").stdout == "a\nb\nc\n"
    assert run("logs", "m", "--tail", "1").stdout == "c\n"
    assert run("logs", "m", "--tail", "0").stdout == ""
    assert run("logs", "m-1").stdout == "one\n"
    followed = run("logs", "m-1", "-f")
    assert followed.exit_code == 0
    assert followed.stdout == "one\n"
    assert "ended: failed" in followed.stderr
    never = run("logs", "never")
    assert never.exit_code == 4
    assert "not been loaded yet" in never.stderr


def test_events_show_the_past(shoal: ScriptedShoal, run: Run) -> None:
    shoal.history = [
        {"at": time.time(), "level": "error", "kind": "failed", "model": name, "instance": None, "message": f"{name}!"}
        for name in ("a", "b")
    ]
    assert "b!" in run("events").stdout
    assert "a!" not in run("events", "--model", "b").stdout


def test_events_of_some_kinds_and_times(shoal: ScriptedShoal, run: Run) -> None:
    now = time.time()
    shoal.history = [
        {"at": now - ago, "level": "info", "kind": kind, "model": "m", "instance": None, "message": f"m {kind} {ago}"}
        for ago, kind in ((90_000, "sleeping"), (5400, "ready"), (60, "sleeping"))
    ]
    assert "90000" in run("events", "--kind", "sleeping").stdout
    assert "ready" not in run("events", "--kind", "sleeping").stdout
    assert len(run("events", "--kind", "sleeping", "--kind", "ready", "--since", "2h").stdout.splitlines()) == 2
    assert len(run("events", "--since", "2000-01-01").stdout.splitlines()) == 3
    refused = run("events", "--since", "yesterday")
    assert refused.exit_code == 2
    assert "nor a date" in refused.stderr


def test_chat_streams_the_answer(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    result = run("chat", "m", "hi", "--system", "be brief", "--max-tokens", "5")
    assert result.stdout == "Hello [b]you[/b]\n"
    (body,) = bodies(shoal, "POST", "/v1/chat/completions")
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert body["max_tokens"] == 5
    assert run("chat", "m", "-", input="from a pipe").exit_code == 0
    assert bodies(shoal, "POST", "/v1/chat/completions")[1]["messages"][0]["content"] == "from a pipe"
    as_json = json.loads(run("chat", "m", "hi", "--json").stdout)
    assert as_json["content"] == "Hello [b]you[/b]"
    assert as_json["usage"] == {"completion_tokens": 3}


def test_chat_reports_an_error_within_the_stream(shoal: ScriptedShoal, run: Run) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.answer = ["Hel", "ERROR"]
    result = run("chat", "m", "hi")
    assert result.exit_code == 1
    assert "the engine died" in result.stderr
    assert run("chat", "nosuch", "hi").exit_code == 4


def test_config_check_names_the_fault_and_a_remedy(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "shoal.yaml"
    file.write_text("prot: 80\n")
    result = run("config", "check", str(file))
    assert result.exit_code == 1
    assert "did you mean port?" in " ".join(result.stderr.split())
    file.write_text("port: 8001\nmodels:\n  m: {source: toy, engine: simulated}\n")
    assert run("config", "check", str(file)).exit_code == 0
    assert "port: 8001" in run("config", "show", str(file)).stdout


def test_config_show_hides_the_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATABASE_URL", "postgresql+psycopg://me:hunter2@db/shoal")
    shown = run("config", "show").stdout
    assert "hunter2" not in shown
    assert "postgresql+psycopg://me:***@db/shoal" in shown
