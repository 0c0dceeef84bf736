"""How the models of one run are measured: tokenizer, text, arithmetic, device. What cannot serve is refused here."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.measuring import perplexity
from lottery.measuring.cache import Cache
from lottery.measuring.protocol import EvalProtocol
from lottery.measuring.text import pick_window, tokenize_windows
from lottery.models import architecture, devices
from lottery.models.checkpoint import Base
from lottery.progress import say
from lottery.runtime import load
from lottery.runtime.layers import check_int8
from lottery.spec import Spec, json_sha256


@dataclass(frozen=True)
class Setup:
    """How models are measured in one run: the same for the ticket and for its dense base."""

    measures: tuple[str, ...]
    tokenizer: Any
    dtype: str
    device: str
    ids_NT: np.ndarray | None
    protocol: EvalProtocol | None
    runtime: str
    eager: bool = False  # the ticket decodes without a graph on a GPU: then the dense base does, too
    family: str = ""  # of architectures, by config.json
    hardware: str = ""  # what its speeds are of

    @property
    def protocol_id(self) -> str:
        """Without a data set, what is left of a protocol: arithmetic, runtime, device."""
        return self.protocol.id if self.protocol else json_sha256([self.dtype, self.runtime, self.device])[:12]


def resolve_dataset(spec: Spec, base_id: str) -> str:
    """What `auto` means."""
    return spec.dataset if spec.dataset != "auto" else "builtin" if base_id == "builtin" else "wikitext2"


def make_setup(source: load.TensorSource, spec: Spec, base_id: str, quantize: str, cache: Cache) -> Setup:
    """Read and tokenize once what will be measured on. Everything that may be refused is refused here. `quantize`: the
    ticket's.

    Raises InputError for a device, window, data set or tokenizer that cannot serve, or where memory will not do.
    """
    device = devices.pick_device(spec.device)
    dtype = devices.pick_compute_dtype(spec.dtype, source.dtype, device)
    tokenizer = cache.get_or_compute(("tokenizer", source.folder), lambda: architecture.read_tokenizer(source.folder))
    config = architecture.read_config(source.folder)
    window = pick_window(spec.window, architecture.context_length(config))
    if tokenizer is None and set(spec.measures) - {"memory"}:
        raise InputError(f"measure={spec.measure}: the base has no tokenizer files; give measure=none or memory")
    ids_NT = protocol = None
    if spec.measures and quantize == "int8" and spec.runtime == "dense":
        check_int8(device)
    if spec.measures:
        check_memory(
            source, config, spec, base_id, dtype, device, quantize, window if "perplexity" in spec.measures else 0
        )
    if "perplexity" in spec.measures:
        dataset = resolve_dataset(spec, base_id)
        words = config.get_text_config().vocab_size
        how = (dataset, words, window, spec.limit, dtype, spec.runtime, device)
        ids_NT, protocol = cache.get_or_compute(
            ("windows", source.folder, *how), lambda: tokenize_windows(dataset, tokenizer, *how[1:])
        )
        if quantize == "int8":
            protocol = replace(protocol, int8_arithmetic="w8a16" if spec.runtime == "packed" else "w8a8")
        if protocol.windows < 2:
            what, way_out = ("limit=1", "a larger one") if spec.limit == 1 else (f"dataset={dataset}", "more text")
            say(f"warning: {what}: of a single window no interval is known, and no winner; give {way_out}")
    eager = quantize == "int8" and spec.runtime == "dense"  # bitsandbytes looks at activations in between
    return Setup(
        measures=spec.measures,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        ids_NT=ids_NT,
        protocol=protocol,
        runtime=spec.runtime,
        eager=eager,
        family=config.model_type,
        hardware=devices.hardware(device),
    )


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
    """Raises InputError, with a value that would fit, where weights or a window clearly will not."""
    free, numel = devices.free_bytes(device), sum(source.info(name).numel for name in source.tensors)
    lean = quantize != "none" or spec.runtime == "packed"

    def takes(dtype: str, device: str, lean: bool) -> int:
        # The dense base is measured as well. What it maps out of its files, in their own type, is no memory of the
        # process; a ticket of 8 bits, or packed, takes less than the base. Both are not loaded at once.
        mapped = device == "cpu" and devices.pick_compute_dtype("source", source.dtype, device) == dtype
        return numel if mapped and lean else numel * (4 if dtype == "float32" else 2)

    weights = takes(dtype, device, lean)
    if weights > free:
        own, on_cpu = (
            devices.pick_compute_dtype(d, source.dtype, w) for d, w in (("source", device), (spec.dtype, "cpu"))
        )
        ways = []
        if takes(own, device, lean) <= free:
            ways.append("dtype=source")
        if device == "cuda" and takes(on_cpu, "cpu", lean) <= devices.free_bytes("cpu"):
            ways.append("device=cpu")
        if takes(dtype, device, True) <= free:
            ways.append("runtime=packed")
            if isinstance(source, Base) and spec.storage != "mask":  # of a ticket that is there it is settled
                ways.append("quantize=int8 or fp8")
        elif not ways and takes(own, device, True) <= free:
            ways.append("dtype=source with runtime=packed")
        raise InputError(
            f"model={base_id}: its {numel:,} weights take about {weights / 1e9:.1f} GB as {dtype} on {device}, "
            f"{free / 1e9:.1f} GB are free; give {', or '.join([*ways, 'measure=none'])}"
        )
    if not window:
        return
    a_token, logits = perplexity.activation_bytes_per_token(config), perplexity.logit_bytes(config)
    if weights + logits + a_token * window > free:
        fits = max(0, free - weights - logits) // a_token
        way_out = f"give window={min(window, 2 ** (fits.bit_length() - 1))}" if fits > 1 else "give measure=none"
        raise InputError(
            f"window={window}: beside the weights it takes about {(logits + a_token * window) / 1e9:.1f} GB on {device}, "
            f"{max(0, free - weights) / 1e9:.1f} GB are left; {way_out}"
        )
