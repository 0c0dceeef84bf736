"""Tokenizers of other kinds than the embedded one: those that close every text, and SentencePiece's own files."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from lottery.models.architecture import encode, encode_prompt, read_tokenizer
from lottery.models.checkpoint import BUILTIN
from tests.support.refused import refused

Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]
END = "<|endoftext|>"
HOW = ("--dataset", "builtin", "--window", 64, "--limit", 2)


def closing(folder: Path, end: str = "eos_token") -> Path:
    """The embedded model with a tokenizer that puts the token 0 after every text, as its end or as a separator."""
    shutil.copytree(BUILTIN, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    text, token = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}
    tokenizer["post_processor"] |= {
        "single": [text, token], "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    del about["bos_token"], about["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {end: END}))
    return folder


@pytest.mark.parametrize("end", ["eos_token", "sep_token"])
def test_a_prompt_loses_the_end_token_that_the_tokenizer_adds(end: str, tmp_path: Path) -> None:
    plain, closes = read_tokenizer(BUILTIN), read_tokenizer(closing(tmp_path / "m", end))
    for text in ("The old man went down to the", f"one text{END}", f"{END}another", END, ""):
        assert encode(closes, text) == [*encode(plain, text), 0]
        assert encode_prompt(closes, text) == encode(plain, text)  # what the text itself holds stays
        assert encode_prompt(plain, text) == encode(plain, text)


def test_texts_go_on_where_the_tokenizer_closes_them(tmp_path: Path, cli: Cli, lottery_json: Json) -> None:
    """generate, the samples with their NLL, and the served model say what they say with the ordinary tokenizer."""
    model, prompt = closing(tmp_path / "closing"), "The old man went down to the"
    out = {"closing": tmp_path / "one", "builtin": tmp_path / "two"}
    made = {
        name: lottery_json("prune", "--model", of, *HOW, "--measure", "perplexity,samples", "--out", out[name])
        for name, of in (("closing", model), ("builtin", "builtin"))
    }
    text = {name: lottery_json("generate", out[name], "--prompt", prompt)["text"] for name in made}
    assert text["closing"] == text["builtin"] != prompt
    samples = {name: json.loads((out[name] / "measurements.json").read_text())["samples"] for name in made}
    assert samples["closing"] == samples["builtin"]
    for name in ("dense_nll", "repetition", "distinct_2", "perplexity"):
        assert made["closing"]["metrics"][name] == made["builtin"]["metrics"][name], name
    served = mlflow.pyfunc.load_model(made["closing"]["model_uri"])
    assert served.predict([prompt]) == [text["builtin"]]


def test_the_protocol_says_that_texts_are_closed(tmp_path: Path, lottery_json: Json) -> None:
    how = (*HOW, "--measure", "perplexity", "--register", "none", "--dtype", "bfloat16", "--device", "cpu")
    found = {}
    for name, model in (("closing", closing(tmp_path / "closing")), ("builtin", BUILTIN)):
        tags = lottery_json("prune", "--model", model, *how, "--out", tmp_path / f"{name}.t")["tags"]
        record = json.loads((tmp_path / f"{name}.t" / "measurements.json").read_text())["protocol"]
        found[name] = (tags["protocol"], record["bos"], record["tokens"])
    assert found["builtin"] == ("4db08be4e3b7", "none", 28_000)  # as it was
    assert found["closing"][0] != found["builtin"][0]
    assert found["closing"][1:] == ("none, an end token after the text", 28_001)


def sentencepiece_model(tiny: Path, folder: Path) -> Path:
    """A model whose tokenizer is tokenizer.model alone, with the tokenizer_config.json that goes with it."""
    shutil.copytree(tiny, folder)
    (folder / "tokenizer.json").unlink()
    about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")  # how such a file begins
    return folder


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed here")
def test_the_line_names_the_package_that_reads_a_sentencepiece_model(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    model = sentencepiece_model(tiny, tmp_path / "m")
    result = cli("prune", "--model", model, *HOW, "--register", "none", code=2)
    refused(result, "model=", "tokenizer.model", "pip install sentencepiece", "tokenizer.json")
    assert "tiktoken" not in result.stderr
    (model / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's files have the same name
    refused(cli("prune", "--model", model, *HOW, "--register", "none", code=2), "pip install tiktoken")


def test_a_sentencepiece_model_gives_its_own_tokens(tiny: Path, tmp_path: Path, cli: Cli, lottery_json: Json) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the package sentencepiece")
    model, text = sentencepiece_model(tiny, tmp_path / "m"), Path(BUILTIN.parent / "evaluation.txt")
    trained = {"model_type": "bpe", "vocab_size": 600, "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(model / "tokenizer"), **trained)
    (model / "tokenizer.vocab").unlink()
    own = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    line = "The old man went down to the sea."
    assert encode(read_tokenizer(model), line) == [1, *own.encode(line)]
    made = lottery_json("prune", "--model", model, *HOW, "--measure", "perplexity")
    lottery_json("generate", made["model_uri"], "--prompt", line, "--tokens", 5)
    needs = mlflow.pyfunc.get_model_dependencies(made["model_uri"])
    assert "sentencepiece==" in Path(needs).read_text()
    (model / "tokenizer_config.json").unlink()
    refused(cli("prune", "--model", model, *HOW, "--register", "none", code=2), "model=", "tokenizer_config.json")
