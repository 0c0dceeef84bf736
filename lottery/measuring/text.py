"""Turns data sets into token windows, and states the protocol.

Legend: N windows, T tokens of a window.
"""

import hashlib
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.measuring.protocol import EvalProtocol
from lottery.models.architecture import closes_texts
from lottery.models.texts import read_text, tokenize


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
    name, text = read_text("dataset", dataset)
    ids = tokenize(tokenizer, text, words)
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
