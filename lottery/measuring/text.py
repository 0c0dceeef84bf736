"""Data sets -> token windows, with the record of the protocol that fixes what a perplexity means."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.models import hub
from lottery.models.architecture import encode
from lottery.spec import digest

EMBEDDED = Path(__file__).parent.parent / "assets" / "evaluation.txt"
LONGEST = 2048  # tokens: the window of the GPTQ protocol, which wanda's and sparsegpt's tables use


def read_text(dataset: str) -> tuple[str, str]:
    """(name, the whole text as one string). Raises InputError where there is no such data set."""
    if dataset == "builtin":
        return "builtin", EMBEDDED.read_text(encoding="utf-8")
    if dataset == "wikitext2":
        return "wikitext2", "\n\n".join(
            hub.dataset_rows(f"dataset={dataset}", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text")
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


@dataclass(frozen=True)
class Protocol:
    """What fixes a measured number, beside the model: the record stored with it. Tokens and windows as evaluated."""

    dataset: str
    text_sha256: str
    utf8_bytes: int
    tokens: int
    windows: int
    window: int
    limit: int | str
    bos: str
    dtype: str
    runtime: str
    device: str
    int8_arithmetic: str = (
        "none"  # of a ticket quantized so: w8a8 (activations are rounded too) or w8a16; goes with runtime
    )

    @property
    def id(self) -> str:
        """12 hex digits. The data set counts by content, so a copy under another name is the same protocol."""
        fixed = ("text_sha256", "window", "limit", "bos", "dtype", "runtime", "device")
        return digest({name: getattr(self, name) for name in fixed})[:12]

    @property
    def dataset_digest(self) -> str:
        """Of the text, and of all that was recorded with it: MLflow keeps what it is first told of a name and a digest."""
        return f"{self.text_sha256[:12]}-{digest(self.record())[:12]}"

    @property
    def arithmetic(self) -> str:
        """What was multiplied: the type, and for int8 codes whether activations were rounded, too."""
        return self.dtype + (f", {self.int8_arithmetic}" if self.int8_arithmetic != "none" else "")

    def record(self) -> dict[str, Any]:
        return {"protocol": self.id, **asdict(self)}

    def line(self) -> str:
        one = "window" if self.limit != "none" else "1 window"
        counted = one if self.windows == 1 else f"{self.windows} windows"
        first = "the first " if self.limit != "none" else ""
        return (
            f"{self.dataset}: {self.tokens:,} tokens, {first}{counted} of {self.window}, BOS {self.bos}, "
            f"{self.dtype} on {self.device}{f', int8 as {self.int8_arithmetic}' if self.int8_arithmetic != 'none' else ''}"
        )


def pick_window(window: int | str, context: int) -> int:
    if window == "auto":
        return min(LONGEST, context)
    if int(window) > context:
        raise InputError(f"window={window}: this model takes at most {context} tokens; give no more")
    return int(window)


def windows(
    dataset: str, tokenizer: Any, words: int, window: int, limit: int | str, dtype: str, runtime: str, device: str
) -> tuple[np.ndarray, Protocol]:
    """(ids_NT int64, the protocol): the text tokenized once, with the tokenizer's own special tokens, cut into
    non-overlapping windows of `window` tokens, the tail dropped. `words`: the size of the model's vocabulary.

    Raises InputError for a text shorter than one window, or a tokenizer that is not the model's.
    """
    name, text = read_text(dataset)
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
    protocol = Protocol(
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
