"""The protocol of a measurement: all that fixes a perplexity beside the model."""

from dataclasses import asdict, dataclass
from typing import Any

from lottery.spec import json_sha256


@dataclass(frozen=True)
class EvalProtocol:
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
        return json_sha256({name: getattr(self, name) for name in fixed})[:12]

    @property
    def dataset_digest(self) -> str:
        """Of the text, and of all that was recorded with it: MLflow keeps what it is first told of a name and a digest."""
        return f"{self.text_sha256[:12]}-{json_sha256(self.record())[:12]}"

    @property
    def arithmetic(self) -> str:
        """What was multiplied: the type, and for int8 codes whether activations were rounded, too."""
        return self.dtype + (f", {self.int8_arithmetic}" if self.int8_arithmetic != "none" else "")

    def record(self) -> dict[str, Any]:
        return {"protocol": self.id, **asdict(self)}

    def describe(self) -> str:
        one = "window" if self.limit != "none" else "1 window"
        counted = one if self.windows == 1 else f"{self.windows} windows"
        first = "the first " if self.limit != "none" else ""
        return (
            f"{self.dataset}: {self.tokens:,} tokens, {first}{counted} of {self.window}, BOS {self.bos}, "
            f"{self.dtype} on {self.device}{f', int8 as {self.int8_arithmetic}' if self.int8_arithmetic != 'none' else ''}"
        )
