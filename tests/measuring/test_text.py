"""The text that is measured on: its rows and its tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import transformers
from click.testing import Result

from lottery.models.texts import BUILTIN_TEXT
from tests.support.models import tiny_model
from tests.support.paths import STORIES, WIKITEXT, needs_data
from tests.support.refused import refused


@needs_data
def test_gpt2_counts_the_tokens_of_wikitext2() -> None:
    from lottery.measuring.text import tokenize_windows
    from lottery.models.architecture import read_tokenizer

    folder = STORIES.parent / "tokenizers" / "gpt2"
    tokenizer = transformers.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ids_NT, protocol = tokenize_windows(str(WIKITEXT), tokenizer, 50257, 1024, "none", "float32", "dense", "cpu")
    assert protocol.tokens == 287_644 and ids_NT.shape == (280, 1024) and protocol.bos == "none"
    assert read_tokenizer(folder.parent) is None


def test_rows_of_json_lines_split_at_newlines_alone(tmp_path: Path) -> None:
    from lottery.models.texts import read_text

    texts = ["one\u2028two\u0085", "three"]
    rows = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    (tmp_path / "x.jsonl").write_bytes(rows.encode())
    assert read_text("dataset", str(tmp_path / "x.jsonl")) == ("x.jsonl", "\n\n".join(texts))


HOW = ("--window", 64, "--limit", 2, "--measure", "perplexity", "--register", "none")
Json = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plain(lottery_json: Json) -> dict[str, Any]:
    """What the embedded text gives."""
    return lottery_json("prune", "--dataset", "builtin", *HOW)


@pytest.mark.parametrize("name", ["mark.txt", "mark.jsonl", "BOOK.TXT", "BOOK.JSONL", "BOOK.Parquet"])
def test_a_byte_order_mark_is_no_text_and_endings_have_any_case(
    name: str, plain: dict[str, Any], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    text = BUILTIN_TEXT.read_text(encoding="utf-8")
    mark = b"\xef\xbb\xbf" if name.startswith("mark") else b""
    if name.lower().endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / name)
    else:
        content = text if name.lower().endswith(".txt") else json.dumps({"text": text})
        (tmp_path / name).write_bytes(mark + content.encode())
    result = cli("prune", "--dataset", tmp_path / name, *HOW, "--json")
    found = json.loads(result.stdout)
    assert found["tags"]["protocol"] == plain["tags"]["protocol"]
    assert found["metrics"]["perplexity"] == plain["metrics"]["perplexity"]
    assert result.stderr.count("its byte order mark is left out") == bool(mark)


def test_json_that_is_nested_too_deeply(tmp_path: Path, cli: Callable[..., Result]) -> None:
    (tmp_path / "deep.jsonl").write_text('{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    refused(cli("prune", "--dataset", tmp_path / "deep.jsonl", *HOW, code=2), "dataset=", "nested too deeply")
    model = tiny_model(tmp_path / "m")
    for name in ("generation_config.json", "config.json"):
        (model / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
        refused(cli("prune", "--model", model, "--dataset", "builtin", *HOW, code=2), str(model), name)


@pytest.mark.parametrize("name", ["line\nbreak.txt", "bell\x07.txt", "no\xa0break.txt"])
def test_a_text_s_name_with_characters_that_cannot_be_printed(
    name: str, plain: dict[str, Any], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    (tmp_path / name).write_text(BUILTIN_TEXT.read_text(encoding="utf-8"), encoding="utf-8")
    shown = cli("prune", "--dataset", tmp_path / name, *HOW).stdout
    words = name.replace("\n", " ").replace("\x07", " ").replace("\xa0", " ")
    assert f"protocol {plain['tags']['protocol']}: {words}: 28,000 tokens" in shown
