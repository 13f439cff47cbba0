"""The playground's arithmetic and its Markdown, in the language that they are written in."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.dashboard import STATIC

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")


def node(script: str, data: object = None) -> Any:
    """What a module prints as JSON, with `data` as what it finds in `data`."""
    modules = "".join(
        f'import * as {name} from "data:text/javascript,{_encoded(STATIC / file)}";\n'
        for name, file in (("play", "playground.js"), ("markdown", "markdown.js"))
    )
    read = 'import { readFileSync } from "node:fs"; const data = JSON.parse(readFileSync(0, "utf-8"));\n'
    done = subprocess.run(
        ["node", "--input-type=module", "-e", f"{modules}{read}{script}"],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _encoded(file: Path) -> str:
    return quote(file.read_text(encoding="utf-8"), safe="")


def markdown(text: str) -> Any:
    return node("console.log(JSON.stringify(markdown.parse(data)))", text)


def p(*kids: Any) -> Any:
    return {"tag": "p", "kids": list(kids)}


def tag(name: str, *kids: Any, **more: Any) -> Any:
    return {"tag": name, "kids": list(kids), **more}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain <b>text</b> & 🐟", [p("plain <b>text</b> & 🐟")]),
        ("a *b* **c** _d_ __e__ ~~f~~", [p("a ", tag("em", "b"), " ", tag("strong", "c"), " ", tag("em", "d"), " ",
                                          tag("strong", "e"), " ", tag("del", "f"))]),
        ("**a *b* c**", [p(tag("strong", "a ", tag("em", "b"), " c"))]),
        ("2 * 3 * 4, snake_case_name and **unclosed", [p("2 * 3 * 4, snake_case_name and **unclosed")]),
        (r"\*not\* `*code*` ``a`b``", [p("*not* ", tag("code", "*code*"), " ", tag("code", "a`b"))]),
        ("[x](https://e.org/a) [y](javascript:alert(1)) ![z](https://e.org/p.png)",
         [p(tag("a", "x", href="https://e.org/a"), " [y](javascript:alert(1)) !", tag("a", "z", href="https://e.org/p.png"))]),
        ("# One\n###### Six #\n#none", [tag("p", "One", word="h1"), tag("p", "Six", word="h6"), p("#none")]),
        ("a\n\n---\nb", [p("a"), tag("hr"), p("b")]),
        ("```py x\nif a:\n  b\n```\nafter", [tag("pre", "if a:\n  b", word="py"), p("after")]),
        ("~~~\n```\nstill", [tag("pre", "```\nstill", word="")]),
        ("> a\n> > b\nc", [tag("blockquote", p("a"), tag("blockquote", p("b"))), p("c")]),
        ("- a\n  - b\n- c", [tag("ul", tag("li", "a", tag("ul", tag("li", "b"))), tag("li", "c"))]),
        ("3. a\n   ```\n   x\n   ```\n4. b",
         [tag("ol", tag("li", "a", tag("pre", "x", word="")), tag("li", "b"), start=3)]),
        ("| a | b |\n|---|--:|\n| 1 | *2* |\n| 3 |",
         [tag("table", tag("thead", tag("tr", tag("th", "a"), tag("th", "b", align="right"))),
              tag("tbody", tag("tr", tag("td", "1"), tag("td", tag("em", "2"), align="right")),
                  tag("tr", tag("td", "3"), tag("td", align="right"))))]),
        ("a | b\nno table", [p("a | b\nno table")]),
        ("", []),
    ],
)  # fmt: skip
def test_markdown(text: str, expected: Any) -> None:
    assert markdown(text) == expected


def test_hostile_markdown_takes_linear_time_and_few_elements() -> None:
    """A megabyte of each: what looks for something again and again would take longer than the test may."""
    script = """
      const count = (nodes) => {
        let n = 0;
        for (const todo = [...nodes]; todo.length; ) {
          const one = todo.pop();
          if (typeof one === "object") { n++; for (const kid of one.kids) todo.push(kid); }
        }
        return n;
      };
      const found = {};
      for (const unit of data) found[unit] = count(markdown.parse(unit.repeat(Math.ceil(2 ** 20 / unit.length))));
      console.log(JSON.stringify(found));
    """  # fmt: skip
    units = [
        "*[", "[", "](", "[a](", "[a](b", "`", "` ", "`a``", "**a", "*a_b~~", "_", "> ", ">", "- ", "- a\n", "1. ",
        "| ", "|-", "|\n|-\n", "|a|\n", "\n", "a\n\n", "# ", "#", "-", " ", "\\", "~~~\n", "```\n", "[*",
        "a|b\n-|-\n", "  - a\n", "* * a ",
    ]  # fmt: skip
    units += ["[a](" + "b" * 500, "- " + " " * 300 + "\n", "|" + " " * 5000 + "x\n" + " " * 5000 + "x\n"]
    for unit, elements in node(script, units).items():
        assert elements <= 60_000, unit[:20]


ALPHABET = st.sampled_from([*"*_`[]()~|-#> \n\\ab1.", "https://e.org", "🐟", "\u202e", "<b>"])


@settings(max_examples=4, deadline=None)
@given(st.lists(st.lists(ALPHABET, max_size=60).map("".join), min_size=150, max_size=150))
def test_nothing_of_a_text_is_lost_and_nothing_but_known_elements_is_made(texts: list[str]) -> None:
    script = """
      const walk = (nodes, seen) => {
        for (const one of nodes) {
          if (typeof one === "string") { seen.text += one; continue; }
          seen.tags.add(one.tag);
          if (one.href !== undefined) seen.hrefs.push(one.href);
          walk(one.kids, seen);
        }
        return seen;
      };
      console.log(JSON.stringify(data.map((text) => {
        const seen = walk(markdown.parse(text), { text: "", tags: new Set(), hrefs: [] });
        return { ...seen, tags: [...seen.tags] };
      })));
    """
    known = {"p", "em", "strong", "del", "a", "code", "pre", "hr", "blockquote", "ul", "ol", "li"}
    known |= {"table", "thead", "tbody", "tr", "th", "td"}
    for text, seen in zip(texts, node(script, texts), strict=True):
        assert set(seen["tags"]) <= known
        assert all(href.startswith("https://") for href in seen["hrefs"])
        assert text.count("🐟") >= seen["text"].count("🐟")
        if not {"`", "~", "|", "("} & set(text):  # words of fences, cells too many and addresses are not shown as text
            assert text.count("🐟") == seen["text"].count("🐟")
            assert text.count("a") == seen["text"].count("a")


STREAM = (
    ': wait\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: error\ndata:x\n\nid: 4\rdata: é🐟\r\rdata\n\ndata: never ended'
)
EVENTS = [{"comment": "wait"}, {"data": '{"a":\n1}'}, {"data": "x"}, {"data": "é🐟"}, {"data": ""}]


def test_a_stream_is_read_the_same_wherever_it_is_cut() -> None:
    script = """
      const all = [];
      for (let a = 0; a <= data.length; a++) for (let b = a; b <= data.length; b += 3) {
        const stream = new play.EventStream();
        const parts = [data.slice(0, a), data.slice(a, b), data.slice(b)];
        all.push(JSON.stringify(parts.flatMap((part) => stream.push(part))));
      }
      const one = new play.EventStream();
      all.push(JSON.stringify([...data].flatMap((character) => one.push(character))));
      console.log(JSON.stringify([...new Set(all)]));
    """
    (only,) = node(script, STREAM)
    assert json.loads(only) == EVENTS


def test_a_stream_of_one_long_line_is_linear_and_bounded() -> None:
    script = """
      const stream = new play.EventStream();
      let said = "";
      try { for (let n = 0; n < 20000; n++) stream.push("x".repeat(1000)); } catch (error) { said = error.message; }
      console.log(JSON.stringify(said));
    """
    assert node(script) == "A line of the answer is longer than 16 MiB."


def answered(*parts: Any, end: str = "lost") -> Any:
    """The answer after these parts of a stream, 100 ms apart, and its end."""
    events = [part if isinstance(part, dict) and ("comment" in part or "data" in part) else {"data": json.dumps(part)}
              for part in parts]  # fmt: skip
    script = """
      let answer = play.newAnswer("m", 1000);
      data.events.forEach((event, n) => (answer = play.heard(answer, event, 1100 + 100 * n)));
      answer = play.ended(answer, data.end);
      console.log(JSON.stringify({ ...answer, ...play.speed(answer) }));
    """
    return node(script, {"events": events, "end": end})


def piece(text: str | None = None, finish: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"delta": {**({} if text is None else {"content": text}), **delta}, "finish_reason": finish}]}


DONE = {"data": "[DONE]"}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}


def test_an_answer_grows_and_is_measured() -> None:
    found = answered(piece(role="assistant", content=""), piece("Hel"), piece("lo"), piece(finish="stop"), USAGE, DONE)
    assert (found["state"], found["text"], found["finish"], found["why"]) == ("done", "Hello", "stop", "")
    assert (found["first"], found["last"], found["prompt"], found["completion"]) == (200, 300, 7, 5)
    assert (found["rate"], found["estimated"]) == (40, False)
    without = answered(piece("a"), piece("b"), piece("c", "length"))
    assert (without["state"], without["rate"], without["estimated"]) == ("done", 10, True)


def test_reasoning_is_apart_under_either_name() -> None:
    found = answered(piece(reasoning_content="I "), piece(reasoning="think"), piece("Yes"), DONE)
    assert (found["reasoning"], found["text"], found["first"]) == ("I think", "Yes", 100)


@pytest.mark.parametrize(
    ("parts", "end", "state", "why"),
    [
        ([piece("a")], "lost", "cut", "The connection ended before the answer did."),
        ([], "lost", "refused", "The connection ended before the answer did."),
        ([piece("a")], "stopped", "stopped", "You stopped it."),
        ([piece("a"), {"error": {"message": "the engine died"}}], "lost", "cut", "the engine died"),
        ([{"comment": "waiting"}, {"error": "no room"}], "lost", "refused", "no room"),
        ([piece("a"), {"data": "{garbage"}, piece("b"), DONE], "lost", "cut", "A piece of it could not be read."),
        ([piece("a"), {"data": "null"}, DONE], "lost", "cut", "A piece of it could not be read."),
        ([{"choices": 3}, {"choices": [None]}, piece(content=["no"]), DONE], "lost", "done", ""),
    ],
)
def test_an_answer_that_is_cut_says_why(parts: list[Any], end: str, state: str, why: str) -> None:
    found = answered(*parts, end=end)
    assert (found["state"], found["why"]) == (state, why)


def test_what_is_sent_and_its_command() -> None:
    script = """
      const session = play.newSession("s", ["a", "b"], 0);
      session.fields = { system: "Be brief.", temperature: " 0.5", max_tokens: "12", stop: "END\\n" };
      session.columns[1].fields = { temperature: "1", seed: "", system: " " };
      const answer = (text) => ({ ...play.newAnswer("a", 0), text, state: "done" });
      const turn = (id, text, images = []) => ({ id, text, images });
      const image = { name: "p", url: "data:image/png;base64,AA" };
      session.turns = [turn("1", "one"), turn("2", "two", [image]), turn("3", "it's")];
      session.columns[0].answers = { 1: answer("first"), 2: answer("second") };
      session.columns[1].answers = { 2: answer("only"), 1: answer("") };
      const bodies = session.columns.map((column) => play.requestOf(session, column, session.turns[2]));
      console.log(JSON.stringify({ bodies, curl: play.curlOf("http://h/v1", bodies[0], true) }));
    """
    found = node(script)
    first, second = found["bodies"]
    assert [message["role"] for message in first["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert first["messages"][3]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, {"type": "text", "text": "two"},
    ]  # fmt: skip
    assert {"temperature": 0.5, "max_tokens": 12, "stop": ["END"], "stream": True}.items() <= first.items()
    assert first["stream_options"] == {"include_usage": True}
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert (second["temperature"], second["max_tokens"], "seed" in second) == (1, 12, False)
    shell = f"curl() {{ printf '%s\\n' \"$@\"; cat; }}\nSHOAL_API_KEY='k k'\n{found['curl']}\n"
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=True).stdout
    head, _, body = said.partition("@-\n")
    assert head.splitlines()[1] == "http://h/v1/chat/completions"
    assert "Authorization: Bearer k k" in head
    assert json.loads(body) == first


def test_settings_that_are_wrong_are_said_by_field() -> None:
    typed = {"temperature": "3", "top_p": "x", "max_tokens": "1.5", "seed": "-4", "stop": "a\nb\nc\nd\ne"}
    found = node("console.log(JSON.stringify(play.readFields(data)))", {**typed, "presence_penalty": "-2"})
    assert found["body"] == {"seed": -4, "presence_penalty": -2}
    assert found["faults"] == {
        "temperature": "Give 0 to 2.",
        "top_p": "Give 0 to 1.",
        "max_tokens": "Give a whole number.",
        "stop": "Give four at most, one a line.",
    }


def test_old_sessions_go_first_and_the_open_one_stays() -> None:
    script = "console.log(JSON.stringify(play.toDrop(data, 's0').map(({ id }) => id)))"
    lines = [{"id": f"s{n}", "changedAt": n, "size": 10} for n in range(43)]
    assert node(script, lines) == ["s1", "s2", "s3"]
    large = [{"id": f"s{n}", "changedAt": n, "size": 30 * 2**20} for n in range(4)]
    assert node(script, large) == ["s1", "s2"]
    assert node(script, [{"id": "s0", "changedAt": 0, "size": 2**40}]) == []


def test_export_and_what_was_under_way() -> None:
    script = """
      const session = play.newSession("s", ["a"], 0);
      session.turns = [{ id: "1", text: "Hi", images: [{ name: "a]b", url: "data:image/png;base64,AA" }] }];
      session.columns[0].answers = { 1: { ...play.newAnswer("a", 0), text: "Hel", state: "answering" } };
      const back = play.revived(JSON.parse(JSON.stringify(session)));
      console.log(JSON.stringify({ text: play.asMarkdown(back), state: back.columns[0].answers[1].state }));
    """
    found = node(script)
    assert found["state"] == "cut"
    assert found["text"].split("\n\n") == [
        "# Hi", "## You", "Hi", "![a\\]b](data:image/png;base64,AA)", "## a", "Hel",
        "*Incomplete: The page was left while it came.*\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "task"),
    [
        ([], ""),
        (["--task", "embed"], "embed"),
        (["--task=transcription"], "transcription"),
        (["--runner", "pooling"], "pooling"),
        (["--task", "generate", "--runner", "auto"], ""),
        (["--task"], ""),
        (["--convert", "classify", "--x"], "classify"),
    ],
)
def test_models_for_something_else(args: list[str], task: str) -> None:
    assert node("console.log(JSON.stringify(play.otherTask(data)))", args) == task


def test_the_address_of_models() -> None:
    found = node("console.log(JSON.stringify(play.playgroundAddress(data)))", ["org/m", "a?b&c,d"])
    assert found == "#/playground?models=org%2Fm&models=a%3Fb%26c%2Cd"
