"""The text that is measured on: its rows and its tokens."""

import json
from pathlib import Path

import transformers

from tests.support.paths import STORIES, WIKITEXT, needs_data


@needs_data
def test_gpt2_counts_the_tokens_of_wikitext2() -> None:
    from lottery.measuring.text import windows
    from lottery.models.architecture import read_tokenizer

    folder = STORIES.parent / "tokenizers" / "gpt2"
    tokenizer = transformers.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ids_NT, protocol = windows(str(WIKITEXT), tokenizer, 50257, 1024, "none", "float32", "dense", "cpu")
    assert protocol.tokens == 287_644 and ids_NT.shape == (280, 1024) and protocol.bos == "none"
    assert read_tokenizer(folder.parent) is None


def test_rows_of_json_lines_split_at_newlines_alone(tmp_path: Path) -> None:
    from lottery.measuring.text import read_text

    texts = ["one\u2028two\u0085", "three"]
    rows = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    (tmp_path / "x.jsonl").write_bytes(rows.encode())
    assert read_text(str(tmp_path / "x.jsonl")) == ("x.jsonl", "\n\n".join(texts))
