"""Calibration samples that the dense model writes itself: nothing is needed from outside.

Williams et al., Self-calibration for Language Model Quantization and Pruning (2024): text that the model generates
serves as well as a real one.

Legend: N samples of a batch, T tokens of a sample, W words of the vocabulary.
"""

from typing import Any

import numpy as np
import torch

from lottery.errors import InputError
from lottery.models import devices
from lottery.progress import Advance, progress_bar, say
from lottery.runtime.load import TensorSource, load_model
from lottery.runtime.widening import wide_products

CACHE_BYTES = 2**28  # of the keys and values of the samples that are written together


def write(source: TensorSource, tokenizer: Any, nsamples: int, seqlen: int, seed: int, device: str) -> np.ndarray:
    """Returns token ids, int64 [nsamples, seqlen].

    A sample begins with the token that begins a text, and goes on with tokens drawn from the model's own probabilities
    (temperature 1, nothing cut off). An end token does not stop it. The model computes in the type of its files, and
    in bfloat16 where it overflows in float16. Raises InputError if its output is not finite.
    """
    own = devices.pick_compute_dtype("source", source.dtype, device)
    for dtype in [own, "bfloat16"] if own == "float16" else [own]:
        with progress_bar("the model writes its calibration text", nsamples * seqlen, "tokens") as advance:
            ids_NT = write_in(dtype, source, tokenizer, nsamples, seqlen, seed, device, advance)
        if ids_NT is not None:
            return ids_NT
        say(f"warning: calibration=self: the model's output is not finite in {dtype}")
    raise InputError("calibration=self: the model writes no text, its output is not finite; give a model that does")


def write_in(
    dtype: str,
    source: TensorSource,
    tokenizer: Any,
    nsamples: int,
    seqlen: int,
    seed: int,
    device: str,
    advance: Advance,
) -> np.ndarray | None:
    """Returns the token ids, or None where the model's output is not finite in this type."""
    model = load_model(source, source.tensors, dtype, device)
    first = first_token(model.config.get_text_config(), tokenizer)
    # Drawn here, they are the same on every device and whatever the size of a batch.
    uniform_NT = torch.from_numpy(np.random.default_rng(seed).random((nsamples, seqlen)))
    batch = max(1, CACHE_BYTES // (cache_bytes_per_token(model) * seqlen))
    parts = []
    for uniform in uniform_NT.split(batch):
        part = write_batch(model, first, uniform.to(device), advance)
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts)


@torch.inference_mode()
def write_batch(model: Any, first: int, uniform_NT: torch.Tensor, advance: Advance) -> np.ndarray | None:
    """Returns token ids, int64 [N, T]: `first`, then tokens that the numbers `uniform_NT` from 0 to 1 choose; None where
    the model's output is not finite."""
    ids_NT = torch.full(uniform_NT.shape, first, device=model.device)
    cache = None
    for t in range(1, ids_NT.shape[1]):
        with wide_products(model.dtype, model.device.type):
            out = model(ids_NT[:, t - 1 : t], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        up_to_NW = out.logits[:, -1].float().softmax(-1).cumsum(-1, dtype=torch.float64)
        if not up_to_NW[:, -1].isfinite().all():
            return None
        chosen_N1 = torch.searchsorted(up_to_NW, uniform_NT[:, t - 1 : t] * up_to_NW[:, -1:], right=True)
        ids_NT[:, t : t + 1] = chosen_N1.clamp(max=up_to_NW.shape[1] - 1)
        advance(len(ids_NT))
    return ids_NT.cpu().numpy()


def first_token(config: Any, tokenizer: Any) -> int:
    """Returns the token that begins a text: BOS, or else the end token. Raises InputError if the model has neither."""
    for holder in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id"):
            id = getattr(holder, name, None)
            if isinstance(id, list):  # some models have several end tokens
                id = id[0] if id else None
            if id is not None and 0 <= id < config.vocab_size:
                return int(id)
    raise InputError(
        "calibration=self: the model has no token to begin a text with; give calibration=c4 or a text as calibration=FILE"
    )


def cache_bytes_per_token(model: Any) -> int:
    """Returns the bytes of the keys and values of one token, in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
