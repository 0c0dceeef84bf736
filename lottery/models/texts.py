"""Reads the texts that a model is measured on, or calibrated with: embedded ones, WikiText-2, and files."""

import codecs
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.files.home import printable, resolve_path
from lottery.files.reading import parse_json
from lottery.models.architecture import encode
from lottery.models.hub_datasets import load_dataset_column
from lottery.progress import say

BUILTIN_TEXT = Path(__file__).parent.parent / "assets" / "evaluation.txt"
# The papers join the rows of the test split with two newlines, and those of the train split with a space.
WIKITEXT = {"wikitext2": ("test", "\n\n"), "wikitext2-train": ("train", " ")}
WORDS = {  # what a parameter takes beside a file
    "dataset": ("builtin", "wikitext2"),
    "calibration": ("self", "c4", "wikitext2-train", "builtin"),
    "text": ("stories",),
}
OF_HUB = ("wikitext2", "wikitext2-train", "c4")  # the words that name a text of the hub
INSTEAD = {"dataset": "builtin", "calibration": "self"}  # what needs no hub
MAX_TOKENS = 2048  # of a window or a sample, as in the GPTQ protocol, which the tables of wanda and sparsegpt use


def read_text(parameter: str, value: str) -> tuple[str, str]:
    """Returns the name and the whole text that a value of `dataset` or `calibration` names: a word or a file.

    The words `self` and `c4` of `calibration` name no single text and are not for this function. Raises InputError,
    which begins with the parameter, for a text that is unknown or cannot be read, and MachineError where the hub fails.
    """
    if value in WORDS[parameter]:
        if value == "builtin":
            return value, BUILTIN_TEXT.read_text(encoding="utf-8")
        split, joint = WIKITEXT[value]
        rows = load_dataset_column(
            f"{parameter}={value}",
            "Salesforce/wikitext",
            "wikitext-2-raw-v1",
            split,
            "text",
            f"give {parameter}={INSTEAD[parameter]}, or its {split} parquet file as {parameter}=FILE",
        )
        return value, joint.join(rows)
    return read_file(parameter, value)


def read_file(parameter: str, value: str) -> tuple[str, str]:
    """Returns the name and the text of a file. Rows of JSON lines and of parquet are joined with two newlines."""
    path = resolve_path(value, parameter)
    name = printable(path.name)
    if not path.is_file():
        problem = "it is a folder" if path.is_dir() else "there is no such file"
        raise InputError(f"{parameter}={value}: {problem}; give {', '.join(WORDS[parameter])} or a file")
    try:
        ending = path.suffix.lower()
        if ending == ".txt":
            return name, without_mark(parameter, value, path.read_bytes()).decode("utf-8")
        if ending in (".jsonl", ".json"):
            # Only b"\n" ends a row: str.splitlines would also split at line separators inside of JSON strings.
            lines = without_mark(parameter, value, path.read_bytes()).split(b"\n")
            rows = [parse_json(line)["text"] for line in lines if line.strip()]
        elif ending == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
        else:
            has = f"the ending {path.suffix}" if path.suffix else "no ending"
            raise InputError(
                f"{parameter}={value}: the file has {has}; give a .txt (any text, renamed), .jsonl or .parquet file"
            )
        text = "\n\n".join(rows)
        text.encode("utf-8")  # JSON may hold a lone surrogate, but text may not
        return name, text
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as e:
        reason = f"no column {e}" if isinstance(e, KeyError) else str(e).splitlines()[0]
        raise InputError(
            f"{parameter}={value}: not readable ({reason}); rows need a string column `text`, in UTF-8"
        ) from e


def without_mark(parameter: str, value: str, content: bytes) -> bytes:
    """Returns a file's bytes without a byte order mark at its start, which some editors write and which is no text."""
    if content.startswith(codecs.BOM_UTF8):
        say(f"{parameter}={value}: its byte order mark is left out; it is no part of the text")
    return content.removeprefix(codecs.BOM_UTF8)


def pick_length(parameter: str, tokens: int | str, context: int) -> int:
    """Returns how many tokens a window or a sample has; `auto` is as many as the model takes, at most 2048.

    Raises InputError, which begins with the parameter, if it is longer than the model's context.
    """
    if tokens == "auto":
        return min(MAX_TOKENS, context)
    if int(tokens) > context:
        raise InputError(f"{parameter}={tokens}: this model takes at most {context} tokens; give a smaller {parameter}")
    return int(tokens)


def tokenize(tokenizer: Any, text: str, words: int) -> np.ndarray:
    """Returns the tokens of a whole text (int64), with the special tokens that the tokenizer adds to it.

    `words` is the size of the model's vocabulary. Raises InputError for a tokenizer that is not the model's.
    """
    ids = np.asarray(encode(tokenizer, text), np.int64)
    if len(ids) and ids.max() >= words:
        raise InputError(
            f"model: its tokenizer gives token {ids.max()}, but the model knows only {words} tokens; "
            f"give a model with its own tokenizer"
        )
    return ids
