"""Opens a model so that samples can go through it block by block, and makes sure that this gives what the model gives."""

from collections.abc import Callable

import torch

from lottery.errors import InputError
from lottery.models.checkpoint import Source
from lottery.models.tensors import DTYPES
from lottery.progress import say
from lottery.runtime.blocks import BlockModel

TOLERANCE = 0.01  # by which streamed logits may differ from the model's own, relative to their size
ANOTHER_METHOD = "give method=magnitude, which looks at no data"


def open_blocks(
    source: Source, ids_NT: torch.Tensor, device: str, is_known: Callable[[BlockModel], bool] = lambda model: False
) -> BlockModel:
    """Returns the model, block by block, after a comparison of its streamed logits with those of its own forward pass.

    No comparison is needed where `is_known` says that no sample must run. The model computes in the source's own type; a float16 model whose hidden states overflow computes in bfloat16. Raises
    InputError where the logits differ.
    """
    own = str(DTYPES[source.dtype]).removeprefix("torch.")
    for dtype in dict.fromkeys([own, "bfloat16"] if own == "float16" else [own]):
        model = BlockModel(source, source.places, dtype, device)
        if is_known(model) or check_streaming(model, ids_NT):
            if dtype != own:
                say("the hidden states of this model overflow in float16; the calibration computes in bfloat16")
            return model
    raise InputError(f"{model.name}: its hidden states are not finite; {ANOTHER_METHOD}")


@torch.inference_mode()
def check_streaming(model: BlockModel, ids_NT: torch.Tensor) -> bool:
    """Compares the logits of samples that go through the blocks one by one with those of the model's own forward pass.

    Returns whether all are finite. Raises InputError where they differ: the arguments of the blocks are then not the
    same for all samples.
    """
    samples = [ids_NT[n : n + 1] for n in range(len(ids_NT))]
    own = [model.record(ids_1T) for ids_1T in reversed(samples)][::-1]  # the arguments of the first sample stay
    hidden = [model.embed(ids_1T) for ids_1T in samples]
    for block in range(model.layers):
        model.load(block)
        hidden = [model.run(block, hidden_1TH) for hidden_1TH in hidden]
        model.unload(block)
    for n, (ids_1T, hidden_1TH, own_logits) in enumerate(zip(samples, hidden, own, strict=True)):
        logits = model.finish(ids_1T, hidden_1TH)
        if not (logits.isfinite().all() and own_logits.isfinite().all()):
            return False
        gap = (logits.float() - own_logits.float()).norm() / own_logits.float().norm()
        if gap > TOLERANCE:
            raise InputError(
                f"{model.name}: the blocks of {type(model.model).__name__} give other logits one by one than together "
                f"(sample {n}, {gap:.0%} off), so that data cannot be looked at block by block; {ANOTHER_METHOD}"
            )
    return True
