"""Turns data sets into token windows, and states the protocol.

Legend: N windows, T tokens of a window.
"""

import codecs
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.files.home import printable, resolve_path
from lottery.files.reading import parse_json
from lottery.measuring.protocol import EvalProtocol
from lottery.models import hub
from lottery.models.architecture import closes_texts, encode
from lottery.progress import say

BUILTIN_TEXT = Path(__file__).parent.parent / "assets" / "evaluation.txt"
MAX_WINDOW = 2048  # tokens, as in the GPTQ protocol, which the tables of wanda and sparsegpt use


def read_dataset(dataset: str) -> tuple[str, str]:
    """Returns the name and the whole text of a data set. Raises InputError if it is unknown or cannot be read."""
    if dataset == "builtin":
        return "builtin", BUILTIN_TEXT.read_text(encoding="utf-8")
    if dataset == "wikitext2":
        return "wikitext2", "\n\n".join(
            hub.load_dataset_column(f"dataset={dataset}", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text")
        )
    path = resolve_path(dataset, "dataset")
    name = printable(path.name)
    if not path.is_file():
        problem = "it is a folder" if path.is_dir() else "there is no such file"
        raise InputError(f"dataset={dataset}: {problem}; give builtin, wikitext2 or a file")
    try:
        ending = path.suffix.lower()
        if ending == ".txt":
            return name, without_mark(dataset, path.read_bytes()).decode("utf-8")
        if ending in (".jsonl", ".json"):
            # Only b"\n" ends a row: str.splitlines would also split at line separators inside of JSON strings.
            lines = without_mark(dataset, path.read_bytes()).split(b"\n")
            rows = [parse_json(line)["text"] for line in lines if line.strip()]
        elif ending == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
        else:
            has = f"the ending {path.suffix}" if path.suffix else "no ending"
            raise InputError(
                f"dataset={dataset}: the file has {has}; give a .txt (any text, renamed), .jsonl or .parquet file"
            )
        text = "\n\n".join(rows)
        text.encode("utf-8")  # JSON may hold a lone surrogate, but text may not
        return name, text
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as e:
        reason = f"no column {e}" if isinstance(e, KeyError) else str(e).splitlines()[0]
        raise InputError(
            f"dataset={dataset}: not readable ({reason}); rows need a string column `text`, in UTF-8"
        ) from e


def without_mark(dataset: str, content: bytes) -> bytes:
    """Returns a file's bytes without a byte order mark at its start, which some editors write and which is no text."""
    if content.startswith(codecs.BOM_UTF8):
        say(f"dataset={dataset}: its byte order mark is left out; it is no part of the text")
    return content.removeprefix(codecs.BOM_UTF8)


def pick_window(window: int | str, context: int) -> int:
    """Returns the window in tokens. Raises InputError if it is longer than the model's context."""
    if window == "auto":
        return min(MAX_WINDOW, context)
    if int(window) > context:
        raise InputError(f"window={window}: this model takes at most {context} tokens; give a smaller window")
    return int(window)


def special_tokens(tokenizer: Any, ids: np.ndarray) -> str:
    """Returns what the protocol says of the tokens that the tokenizer adds to a text, which are measured with it."""
    bos = "at the start" if len(ids) and ids[0] == tokenizer.bos_token_id else "none"
    return f"{bos}, an end token after the text" if closes_texts(tokenizer) else bos


def tokenize_windows(
    dataset: str, tokenizer: Any, words: int, window: int, limit: int | str, dtype: str, runtime: str, device: str
) -> tuple[np.ndarray, EvalProtocol]:
    """Returns ids_NT (int64) and the protocol.

    The text is tokenized once, with the tokenizer's own special tokens, and cut into windows of `window` tokens that do
    not overlap; the rest at the end is dropped. `words` is the size of the model's vocabulary. Raises InputError for a
    text that is shorter than one window, and for a tokenizer that is not the model's.
    """
    name, text = read_dataset(dataset)
    ids = np.asarray(encode(tokenizer, text), np.int64)
    if len(ids) and ids.max() >= words:
        raise InputError(
            f"model: its tokenizer gives token {ids.max()}, but the model knows only {words} tokens; "
            f"give a model with its own tokenizer"
        )
    count = len(ids) // window
    if not count:
        raise InputError(
            f"dataset={dataset}: its {len(ids)} tokens are fewer than one window of {window}; "
            f"give a longer text or a smaller window"
        )
    if limit != "none" and int(limit) >= count:
        limit = "none"  # it leaves nothing out
    if limit != "none":
        count = int(limit)
    protocol = EvalProtocol(
        dataset=name,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        utf8_bytes=len(text.encode()),
        tokens=len(ids),
        windows=count,
        window=window,
        limit=limit,
        bos=special_tokens(tokenizer, ids),
        dtype=dtype,
        runtime=runtime,
        device=device,
    )
    return ids[: count * window].reshape(count, window), protocol
