"""Defines the protocol of a measurement: everything, except the model, that a perplexity depends on."""

from dataclasses import asdict, dataclass
from typing import Any

from lottery.spec import json_sha256


@dataclass(frozen=True)
class EvalProtocol:
    """The protocol that is stored with a measured number. Tokens are the text's, windows those that were evaluated."""

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
    # For an int8 ticket: w8a8 (activations are rounded too) or w8a16. It follows from `runtime`.
    int8_arithmetic: str = "none"

    @property
    def id(self) -> str:
        """Returns 12 hex digits. The content of the data set counts, so a renamed copy gives the same protocol."""
        fixed = ("text_sha256", "window", "limit", "bos", "dtype", "runtime", "device")
        return json_sha256({name: getattr(self, name) for name in fixed})[:12]

    @property
    def all_windows(self) -> int:
        """Returns how many windows the whole text has."""
        return self.tokens // self.window

    @property
    def dataset_digest(self) -> str:
        """Returns a digest of the text and of the whole record.

        For one name and digest, MLflow keeps only the first record that it gets.
        """
        return f"{self.text_sha256[:12]}-{json_sha256(self.record())[:12]}"

    @property
    def arithmetic(self) -> str:
        """Returns the type of the arithmetic and, for int8 codes, whether activations were rounded too."""
        return self.dtype + (f", {self.int8_arithmetic}" if self.int8_arithmetic != "none" else "")

    def record(self) -> dict[str, Any]:
        return {"protocol": self.id, **asdict(self)}

    def describe(self) -> str:
        """Returns the protocol as one line for people."""
        counted = count_windows(self.windows, self.all_windows)
        int8 = f", int8 as {self.int8_arithmetic}" if self.int8_arithmetic != "none" else ""
        runtime = f", runtime {self.runtime}" if self.runtime != "dense" else ""
        return (
            f"{self.dataset}: {self.tokens:,} tokens, {counted} of {self.window}, BOS {self.bos}, "
            f"{self.dtype} on {self.device}{runtime}{int8}"
        )


def count_windows(windows: int, of: int | None = None) -> str:
    """Returns how many windows were evaluated, in words; `of`: how many the text has."""
    if of is not None and windows < of:
        return f"the first {windows:,} of {of:,} windows"
    return "1 window" if windows == 1 else f"{windows:,} windows"
