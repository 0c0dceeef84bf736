"""What torch.compile makes of a decoding step on a GPU, none of which is needed for it: python tests/support/traced.py TICKET...

A JSON list, one item a ticket, loaded with runtime=packed: [graphs, kernels of ours in them, packed layers, times that
a GPU would be waited for, numel of the largest input that is neither weight nor cache]. Nothing is compiled and nothing runs.
"""

import json
import sys
from typing import Any

import torch
from torch.utils import _triton

import lottery
from lottery.kernels import cuda
from lottery.runtime import decoding
from lottery.runtime.layers import PackedLinear

vars(_triton)["has_triton"] = lambda: True  # without a GPU the kernel would be looked into, as if it were Python


class SeenError(Exception):
    pass


def traced(ticket: str) -> tuple[int, int, int, int, int]:
    model, _ = lottery.load(ticket, device="cpu", dtype="float32", runtime="packed")
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    found: list[tuple[torch.fx.GraphModule, list[Any]]] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append((graph, inputs))
        raise SeenError

    with torch.inference_mode():
        decoder = decoding.Decoder(model, 64, static=True)
        token_11 = decoder.begin(torch.arange(5, 13)[None])
        assert cuda.has_kernel()
        for module in packed:
            module.fused = True
        decoder.step = torch.compile(model.forward, backend=look, fullgraph=True)
        try:
            decoder.after(token_11)
        except Exception as e:  # the compiler's own, around SeenError
            if not found:
                raise
            assert "SeenError" in repr(e), e
    nodes = [str(node.target) for graph, _ in found for node in graph.graph.nodes]
    kernels = sum("triton_kernel_wrapper" in node for node in nodes)
    waits = sum(node in ("item", "tolist", "nonzero") for node in nodes)  # here part of the graph, on a GPU its end
    held = {id(t) for t in (*model.parameters(), *model.buffers())}
    held |= {id(t) for layer in decoder.cache.layers for t in (layer.keys, layer.values)}
    loose = [t.numel() for _, inputs in found for t in inputs if isinstance(t, torch.Tensor) and id(t) not in held]
    return len(found), kernels, len(packed), waits, max(loose)


if __name__ == "__main__":
    print(json.dumps([traced(ticket) for ticket in sys.argv[1:]]))
