"""Data sets -> token windows, with the record of the protocol that fixes what a perplexity means."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.measuring.protocol import EvalProtocol
from lottery.models import hub
from lottery.models.architecture import encode

BUILTIN_TEXT = Path(__file__).parent.parent / "assets" / "evaluation.txt"
MAX_WINDOW = 2048  # tokens: the window of the GPTQ protocol, which wanda's and sparsegpt's tables use


def read_dataset(dataset: str) -> tuple[str, str]:
    """(name, the whole text as one string). Raises InputError where there is no such data set."""
    if dataset == "builtin":
        return "builtin", BUILTIN_TEXT.read_text(encoding="utf-8")
    if dataset == "wikitext2":
        return "wikitext2", "\n\n".join(
            hub.load_dataset_column(f"dataset={dataset}", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text")
        )
    path = Path(dataset).expanduser()
    if not path.is_file():
        raise InputError(f"dataset={dataset}: not builtin, wikitext2 or a file; give one of them")
    try:
        if path.suffix == ".txt":
            return path.name, path.read_bytes().decode("utf-8")
        if path.suffix in (".jsonl", ".json"):
            # at b"\n" alone: str.splitlines would also split at the line separators that JSON strings may hold
            rows = [json.loads(line)["text"] for line in path.read_bytes().split(b"\n") if line.strip()]
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
        else:
            raise InputError(
                f"dataset={dataset}: {path.suffix or 'no'} ending; give a .txt (any text, renamed), .jsonl or .parquet file"
            )
        text = "\n\n".join(rows)
        text.encode("utf-8")  # a lone surrogate is legal in JSON and in no text
        return path.name, text
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as e:
        reason = f"no column {e}" if isinstance(e, KeyError) else str(e).splitlines()[0]
        raise InputError(
            f"dataset={dataset}: not readable ({reason}); rows need a string column `text`, in UTF-8"
        ) from e


def pick_window(window: int | str, context: int) -> int:
    if window == "auto":
        return min(MAX_WINDOW, context)
    if int(window) > context:
        raise InputError(f"window={window}: this model takes at most {context} tokens; give no more")
    return int(window)


def tokenize_windows(
    dataset: str, tokenizer: Any, words: int, window: int, limit: int | str, dtype: str, runtime: str, device: str
) -> tuple[np.ndarray, EvalProtocol]:
    """(ids_NT int64, the protocol): the text tokenized once, with the tokenizer's own special tokens, cut into
    non-overlapping windows of `window` tokens, the tail dropped. `words`: the size of the model's vocabulary.

    Raises InputError for a text shorter than one window, or a tokenizer that is not the model's.
    """
    name, text = read_dataset(dataset)
    ids = np.asarray(encode(tokenizer, text), np.int64)
    if len(ids) and ids.max() >= words:
        raise InputError(
            f"model: its tokenizer knows token {ids.max()}, the model only {words}: they are not of a kind"
        )
    count = len(ids) // window
    if not count:
        raise InputError(
            f"dataset={dataset}: its {len(ids)} tokens are fewer than one window of {window}; "
            f"give a longer text or a smaller window"
        )
    if limit != "none":
        count = min(count, int(limit))
    protocol = EvalProtocol(
        dataset=name,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        utf8_bytes=len(text.encode()),
        tokens=len(ids),
        windows=count,
        window=window,
        limit=limit,
        bos="at the start" if len(ids) and ids[0] == tokenizer.bos_token_id else "none",
        dtype=dtype,
        runtime=runtime,
        device=device,
    )
    return ids[: count * window].reshape(count, window), protocol
