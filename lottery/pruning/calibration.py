"""The text that a method looks at: which one, what of it names a ticket, and the samples that are drawn from it.

Legend: N samples, T tokens of a sample.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.files.hashes import sha256_of_files
from lottery.models import architecture
from lottery.models.texts import pick_length, read_text, tokenize
from lottery.progress import say
from lottery.pruning import c4, own_text
from lottery.runtime.load import TensorSource
from lottery.spec import METHODS, Spec

SETTINGS = ("calibration", "nsamples", "seqlen", "propagate")  # parameters that mean something to these methods alone


@dataclass(frozen=True)
class Calibration:
    """What a method looks at, and how.

    `text` is a word (self, c4, wikitext2-train, builtin) or a file. `digest` is the sha256 of the text, of c4 that of its first
    file; the text that the model writes itself has none, since its last bits depend on the machine: it is `self`.
    """

    text: str
    digest: str
    nsamples: int
    seqlen: int
    seed: int
    propagate: str

    @property
    def identity(self) -> dict[str, Any]:
        """What of the calibration goes into the name of a ticket, and into its record."""
        return {
            "calibration": self.digest,
            "nsamples": self.nsamples,
            "seqlen": self.seqlen,
            "seed": self.seed,
            "propagate": self.propagate,
        }


def resolve_calibration(spec: Spec, source: TensorSource, base_id: str) -> Calibration | None:
    """Returns what the method of `spec`, or its allocation, looks at, with a value in place of each `auto`; None if
    neither looks at data.

    The text is read, and c4 is downloaded, because its hash is a part of the ticket's name. Warns of parameters that are
    given and ignored. Raises InputError for a text that cannot be used and for a `seqlen` beyond the model's context,
    MachineError where the hub fails.
    """
    method, default = METHODS[spec.method], {f.name: f.default for f in fields(Spec)}
    # An allocation that looks at data sees the dense model.
    unused = () if method.calibrated else ("propagate",) if spec.looks_at_data else SETTINGS
    if given := [f"{name}={getattr(spec, name)}" for name in unused if getattr(spec, name) != default[name]]:
        say(f"warning: {', '.join(given)}: ignored, because method={spec.method} looks at no data")
    if not spec.looks_at_data:
        return None
    text = resolve_text(spec, base_id)
    context = architecture.context_length(architecture.read_config(source.folder))
    return Calibration(
        text=text,
        digest=digest_of(text),
        nsamples=spec.nsamples,
        seqlen=pick_length("seqlen", spec.seqlen, context),
        seed=spec.seed,
        propagate=resolve_propagation(spec),
    )


def resolve_text(spec: Spec, base_id: str) -> str:
    """Returns the calibration text that `auto` stands for, or the one that was given."""
    return spec.calibration if spec.calibration != "auto" else "self" if base_id == "builtin" else "c4"


def resolve_propagation(spec: Spec) -> str:
    """Returns what `propagate=auto` means for the method, or what was given. An allocation sees the dense model."""
    method = METHODS[spec.method]
    return method.propagate if spec.propagate == "auto" or not method.calibrated else spec.propagate


def digest_of(text: str) -> str:
    if text == "self":
        return text
    if text == "c4":
        path = c4.fetch()
        return sha256_of_files([path])[path.name]
    return hashlib.sha256(read_text("calibration", text)[1].encode()).hexdigest()


def draw_samples(calibration: Calibration, source: TensorSource, device: str) -> np.ndarray:
    """Returns the samples as token ids, int64 [N, T].

    On `device` the model writes the text `self`. Raises InputError for a source without a tokenizer, for a tokenizer
    that is not the model's, and for a text that is shorter than a sample.
    """
    config = architecture.read_config(source.folder).get_text_config()
    tokenizer = architecture.read_tokenizer(source.folder)
    how = (calibration.nsamples, calibration.seqlen, calibration.seed)
    if calibration.text == "self":
        return own_text.write(source, tokenizer, *how, device)
    if tokenizer is None:
        raise InputError(
            f"calibration={calibration.text}: the model has no tokenizer files to read a text with; "
            f"put them into {source.folder}, or give calibration=self"
        )
    if calibration.text == "c4":
        return c4.draw(tokenizer, config.vocab_size, *how)
    return draw_from_stream(calibration, tokenizer, config.vocab_size)


def draw_from_stream(calibration: Calibration, tokenizer: Any, words: int) -> np.ndarray:
    """Returns samples that start at uniform places of the text's one stream of tokens, int64 [N, T]."""
    what = f"calibration={calibration.text}"
    ids = tokenize(tokenizer, read_text("calibration", calibration.text)[1], words)
    count, length = calibration.nsamples, calibration.seqlen
    if len(ids) < length:
        raise InputError(
            f"{what}: its {len(ids)} tokens are fewer than one sample of {length}; "
            f"give a longer text, a smaller seqlen or calibration=self"
        )
    if len(ids) < count * length:
        say(
            f"warning: {what}: samples overlap, because the text has {len(ids):,} tokens and {count} samples of "
            f"{length} take {count * length:,}"
        )
    start_N = np.random.default_rng(calibration.seed).integers(0, len(ids) - length + 1, count)
    return np.stack([ids[start : start + length] for start in start_N])
