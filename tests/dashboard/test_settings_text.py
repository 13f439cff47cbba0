"""A model's settings as text and back, in the language that this is written in."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.dashboard import STATIC

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")

# What is told apart by signs that stand for something in the text.
ODD = st.lists(
    st.sampled_from(["a", " ", "\n", "\r", '"', "\\", "=", ",", "\t", "é", "🐟", "--x", "\u2028"]), max_size=6
)
TEXTS = st.one_of(ODD.map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))


def again(kind: str, values: list[Any]) -> list[Any]:
    """What is read from the text that each value is shown as; lines end as a field of a browser has them end."""
    text = (STATIC / "settings_text.js").read_text(encoding="utf-8")
    text = text.replace('import { quote } from "./actions.js";', "const quote = String;")
    script = f"""
      import {{ readFileSync }} from "node:fs";
      import {{ textOf, valueOf }} from "data:text/javascript,{quote(text, safe="")}";
      const [kind, values] = JSON.parse(readFileSync(0, "utf-8"));
      const field = (text) => text.replaceAll(/\\r\\n?/g, "\\n");
      console.log(JSON.stringify(values.map((one) => valueOf({{kind}}, field(textOf({{kind}}, one))))));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        input=json.dumps([kind, values]), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[Any] = json.loads(done.stdout)
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(TEXTS, max_size=5), max_size=40))
@example([["--chat-template", "a\nb", ""], ['"', '"a"', "'", " b c "], [""], []])
def test_any_list_of_texts_is_the_same_again(lists: list[list[str]]) -> None:
    assert again("list", lists) == lists


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(TEXTS, TEXTS, max_size=4), max_size=40))
@example([{"A": "1=2", "B": "", "C": "a\nb\r\n", "D": '"x"', '"E" = ': "f", "": "g"}])
def test_any_variables_are_the_same_again(variables: list[dict[str, str]]) -> None:
    assert again("variables", variables) == variables


def test_what_only_begins_like_json_is_the_same_again() -> None:
    lists = [['"not closed', '--json={"a": 1}', '{"a": 1}', "plain"]]
    assert again("list", lists) == lists
