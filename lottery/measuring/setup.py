"""Decides how the models of one run are measured: tokenizer, text, arithmetic, device. Refuses what cannot be used."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.files.facts import find_fact
from lottery.measuring import perplexity
from lottery.measuring.cache import Cache
from lottery.measuring.hardware import with_kernel
from lottery.measuring.protocol import EvalProtocol
from lottery.measuring.samples import NEW_TOKENS, tokens_of_samples
from lottery.measuring.text import tokenize_windows
from lottery.measuring.verdict import reason_not_judged
from lottery.models import architecture, devices
from lottery.models.checkpoint import TOKENIZER_FILES, Base
from lottery.models.texts import pick_length
from lottery.progress import say
from lottery.runtime import load
from lottery.runtime.layers import check_int8
from lottery.spec import Spec, json_sha256


@dataclass(frozen=True)
class Setup:
    """How models are measured in one run. It is the same for the ticket and its dense base. N windows, T tokens."""

    measures: tuple[str, ...]
    tokenizer: Any
    dtype: str
    device: str
    ids_NT: np.ndarray | None
    protocol: EvalProtocol | None
    runtime: str
    eager: bool = False  # the ticket has no CUDA graph for decoding, so the dense base gets none either
    family: str = ""  # model_type of config.json
    hardware: str = ""  # on which speed is measured

    @property
    def protocol_id(self) -> str:
        """Returns the protocol's id. Without a data set it is a hash of arithmetic, runtime and device alone."""
        return self.protocol.id if self.protocol else json_sha256([self.dtype, self.runtime, self.device])[:12]


def resolve_dataset(spec: Spec, base_id: str) -> str:
    """Returns the data set that `auto` stands for, or the one that was given."""
    return spec.dataset if spec.dataset != "auto" else "builtin" if base_id == "builtin" else "wikitext2"


def make_setup(source: load.TensorSource, spec: Spec, base_id: str, quantize: str, cache: Cache) -> Setup:
    """Returns how the models of one run are measured; reads and tokenizes the text once. `quantize` is the ticket's.

    Raises InputError for a device, kernel, window, data set or tokenizer that cannot be used, and where memory is too
    small.
    """
    device = devices.pick_device(spec.device)
    hardware = describe_hardware(device, spec.runtime)
    dtype = devices.pick_compute_dtype(spec.dtype, source.dtype, device)
    if not spec.measures:
        family = check_unmeasured(source.folder, spec.window)
        return Setup((), None, dtype, device, None, None, spec.runtime, family=family, hardware=hardware)
    tokenizer = cache.get_or_compute(("tokenizer", source.folder), lambda: architecture.read_tokenizer(source.folder))
    config = architecture.read_config(source.folder)
    window = pick_length("window", spec.window, architecture.context_length(config))
    if tokenizer is None and set(spec.measures) - {"memory"}:
        raise InputError(f"measure={spec.measure}: the base has no tokenizer files; give measure=none or memory")
    if quantize == "int8" and spec.runtime == "dense":
        check_int8(device)
    measures = cache.get_or_compute(  # a study says once what it leaves out
        ("measures", source.folder, spec.measures),
        lambda: measures_that_fit(spec.measures, tokenizer, architecture.context_length(config)),
    )
    needs_windows = "perplexity" in measures
    if measures:
        check_memory(source, config, spec, base_id, dtype, device, quantize, window if needs_windows else 0)
    ids_NT = protocol = None
    if needs_windows:
        dataset, words = resolve_dataset(spec, base_id), config.get_text_config().vocab_size
        how = (dataset, words, window, spec.limit, dtype, spec.runtime, device)
        ids_NT, protocol = cache.get_or_compute(
            ("windows", source.folder, *how), lambda: tokenize_windows(dataset, tokenizer, *how[1:])
        )
        if quantize == "int8":
            protocol = replace(protocol, int8_arithmetic="w8a8" if spec.runtime == "dense" else "w8a16")
        warn_of_few_windows(protocol, spec, dataset)
    return Setup(
        measures=measures,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        ids_NT=ids_NT,
        protocol=protocol,
        runtime=spec.runtime,
        eager=quantize == "int8" and spec.runtime == "dense",  # bitsandbytes reads activations, which no graph allows
        family=config.model_type,
        hardware=hardware,
    )


def check_unmeasured(folder: Path, window: int | str) -> str:
    """Returns the model_type of a model that is not measured. Its tokenizer and the window must be usable even so."""

    def find() -> str:
        architecture.read_tokenizer(folder)
        config = architecture.read_config(folder)
        pick_length("window", window, architecture.context_length(config))
        return str(config.model_type)

    files = [folder / name for name in ("config.json", *TOKENIZER_FILES)]
    return str(find_fact("unmeasured", files, str(window), find))


def describe_hardware(device: str, runtime: str) -> str:
    """Returns the name of the machine, with the kernel that runtime=sparse multiplies few tokens with on a CPU.

    Raises InputError if LOTTERY_KERNEL names a kernel that cannot run here.
    """
    name = devices.hardware(device)
    if runtime != "sparse" or device != "cpu":
        return name
    from lottery.kernels.product import pick_kernel  # it loads compiled kernels

    return with_kernel(name, pick_kernel())


def warn_of_few_windows(protocol: EvalProtocol, spec: Spec, dataset: str) -> None:
    """Warns that the text is too short for a verdict, or that a single window gives no interval."""
    if protocol.windows < protocol.all_windows:  # a limit is a first look, which nobody takes for a verdict
        if protocol.windows == 1:
            say("warning: limit=1: a single window gives no interval; give a larger limit")
    elif reason := reason_not_judged(protocol):
        say(f"warning: dataset={dataset}: its windows are too few for a verdict ({reason}); give a longer text")


def measures_that_fit(measures: tuple[str, ...], tokenizer: Any, context: int) -> tuple[str, ...]:
    """Returns the measures without those that generate text, with a line, if the model's context is too short for it."""
    left_out = [name for name in measures if name in ("speed", "samples")]
    if not left_out or (needed := tokens_of_samples(tokenizer)) <= context:
        return measures
    say(
        f"warning: not measured: {' and '.join(left_out)}: a prompt and its {NEW_TOKENS} new tokens take {needed} tokens, "
        f"this model takes {context}"
    )
    return tuple(name for name in measures if name not in left_out)


def check_memory(
    source: load.TensorSource,
    config: Any,
    spec: Spec,
    base_id: str,
    dtype: str,
    device: str,
    quantize: str,
    window: int,
) -> None:
    """Raises InputError where the weights, or a window, certainly exceed the memory; names a value that would fit."""
    free = devices.free_bytes(device)
    small = quantize != "none" or spec.runtime != "dense"
    weights = estimate_weights_bytes(source, dtype, device, small)
    if weights > free:
        ways = ways_to_fit(source, spec, dtype, device, small, free)
        raise InputError(
            f"model={base_id}: its {count_weights(source):,} weights take about {weights / 1e9:.1f} GB as {dtype} on "
            f"{device}, {free / 1e9:.1f} GB are free; give {', or '.join([*ways, 'measure=none'])}"
        )
    if window:
        check_window_memory(config, window, device, free, weights)


def count_weights(source: load.TensorSource) -> int:
    return sum(source.info(name).numel for name in source.tensors)


def estimate_weights_bytes(source: load.TensorSource, dtype: str, device: str, small: bool) -> int:
    """Estimates the bytes that weights take in memory; `small` is for a ticket in 8 bits or packed.

    The dense base is measured as well, but both are not loaded at once. If the base is mapped from its files, in their
    own type, it takes no memory of the process, and a small ticket takes less than the base.
    """
    mapped = device == "cpu" and devices.pick_compute_dtype("source", source.dtype, device) == dtype
    numel = count_weights(source)
    return numel if mapped and small else numel * (4 if dtype == "float32" else 2)


def ways_to_fit(source: load.TensorSource, spec: Spec, dtype: str, device: str, small: bool, free: int) -> list[str]:
    """Returns the options with which the weights would fit into memory."""
    own_dtype = devices.pick_compute_dtype("source", source.dtype, device)
    cpu_dtype = devices.pick_compute_dtype(spec.dtype, source.dtype, "cpu")
    ways = []
    if estimate_weights_bytes(source, own_dtype, device, small) <= free:
        ways.append("dtype=source")
    if device == "cuda" and estimate_weights_bytes(source, cpu_dtype, "cpu", small) <= devices.free_bytes("cpu"):
        ways.append("device=cpu")
    if estimate_weights_bytes(source, dtype, device, True) <= free:
        ways.append("runtime=packed")
        if isinstance(source, Base) and spec.storage != "mask":  # an existing ticket is quantized already, or never
            ways.append("quantize=int8 or fp8")
    elif not ways and estimate_weights_bytes(source, own_dtype, device, True) <= free:
        ways.append("dtype=source with runtime=packed")
    return ways


def check_window_memory(config: Any, window: int, device: str, free: int, weights: int) -> None:
    """Raises InputError where a window's activations and logits exceed the memory that the weights leave."""
    per_token, logits = perplexity.activation_bytes_per_token(config), perplexity.logit_bytes(config)
    if weights + logits + per_token * window > free:
        fits = max(0, free - weights - logits) // per_token
        way_out = f"give window={min(window, 2 ** (fits.bit_length() - 1))}" if fits > 1 else "give measure=none"
        raise InputError(
            f"window={window}: in addition to the weights it takes about {(logits + per_token * window) / 1e9:.1f} GB on "
            f"{device}, {max(0, free - weights) / 1e9:.1f} GB are left; {way_out}"
        )
