"""The tensor names of every known model family: name in a checkpoint -> role, layer and projection."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from lottery.errors import InputError

PRUNABLE = ("attention", "mlp", "embeddings", "lm_head")


@dataclass(frozen=True)
class Family:
    """The names that one family's checkpoints use, both as published and as transformers saves them.

    `*` stands for a number, {a,b} for one of several, [a] for a part that may be missing. Spaces separate the names of
    a field. `layer` precedes the names of `attention`, `mlp`, `fused`, `norms`, `router` and `buffers`.
    """

    models: str  # config.json's model_type
    layer: str
    attention: str
    mlp: str
    embeddings: str
    lm_head: str = "lm_head"
    fused: str = ""  # all experts of a layer in one 3-D tensor, as in transformers' memory; the name has no `.weight`
    norms: str = ""  # the norms that are matrices, with one row for each head
    router: str = ""  # it chooses the experts of a token and is never pruned
    positions: str = ""  # learned positions and other matrices outside of the layers, which are never pruned
    buffers: str = ""  # transformers computes them again, so a ticket leaves them out
    transposed: bool = False  # the matrices of the layers are stored [inputs, outputs]


# fmt: off
FAMILIES = (
    Family("llama mistral qwen2 qwen3 gemma gemma2 gemma3_text stablelm olmo olmo2 smollm3 granite",
           layer="model.layers.*", attention="self_attn.{q,k,v,o}_proj", mlp="mlp.{gate,up,down}_proj",
           embeddings="model.embed_tokens", buffers="self_attn.rotary_emb.inv_freq"),
    Family("cohere",
           layer="model.layers.*", attention="self_attn.{q,k,v,o}_proj", mlp="mlp.{gate,up,down}_proj",
           embeddings="model.embed_tokens", norms="self_attn.{q,k}_norm", buffers="self_attn.rotary_emb.inv_freq"),
    Family("phi",
           layer="model.layers.*", attention="self_attn.{q,k,v}_proj self_attn.dense", mlp="mlp.fc{1,2}",
           embeddings="model.embed_tokens", buffers="self_attn.rotary_emb.inv_freq"),
    Family("phi3",
           layer="model.layers.*", attention="self_attn.{qkv,o}_proj", mlp="mlp.{gate_up,down}_proj",
           embeddings="model.embed_tokens", buffers="self_attn.rotary_emb.inv_freq"),
    Family("gpt2",
           layer="[transformer.]h.*", attention="attn.c_{attn,proj}", mlp="mlp.c_{fc,proj}",
           embeddings="[transformer.]wte", positions="[transformer.]wpe", buffers="attn.bias attn.masked_bias",
           transposed=True),
    Family("gpt_neox",
           layer="gpt_neox.layers.*", attention="attention.{query_key_value,dense}",
           mlp="mlp.dense_{h_to_4h,4h_to_h}", embeddings="gpt_neox.embed_in", lm_head="{embed_out,lm_head}",
           buffers="attention.{bias,masked_bias} attention.rotary_emb.inv_freq"),
    Family("opt",
           layer="[model.]decoder.layers.*", attention="self_attn.{q,k,v,out}_proj", mlp="fc{1,2}",
           embeddings="[model.]decoder.embed_tokens",
           positions="[model.]decoder.embed_positions [model.]decoder.project_{in,out}"),
    Family("falcon",
           layer="transformer.h.*", attention="self_attention.{query_key_value,dense}",
           mlp="mlp.dense_{h_to_4h,4h_to_h}", embeddings="transformer.word_embeddings",
           buffers="self_attention.rotary_emb.inv_freq"),
    Family("mixtral",
           layer="model.layers.*", attention="self_attn.{q,k,v,o}_proj",
           mlp="{block_sparse_moe,mlp}.experts.*.w{1,2,3}", fused="mlp.experts.{gate_up,down}_proj",
           router="{block_sparse_moe,mlp}.gate", embeddings="model.embed_tokens",
           buffers="self_attn.rotary_emb.inv_freq"),
    Family("qwen2_moe qwen3_moe olmoe",
           layer="model.layers.*", attention="self_attn.{q,k,v,o}_proj",
           mlp="mlp.[experts.*.][shared_expert.]{gate,up,down}_proj", fused="mlp.experts.{gate_up,down}_proj",
           router="mlp.gate mlp.shared_expert_gate", embeddings="model.embed_tokens",
           buffers="self_attn.rotary_emb.inv_freq"),
)
# fmt: on

# The vectors of every family: what is called a norm, and biases.
NORM = r"(.*\.)?(\w*norm\w*|ln_\w+)(\.norms\.\d+)?\.(weight|bias)"
BIAS = r".*\.bias"


@dataclass(frozen=True)
class Place:
    """The role of one checkpoint tensor in the model.

    A head that will be untied from the embeddings is in no file yet: `copy_of` names the tensor that holds its values.
    """

    name: str
    role: str
    layer: int | None = None
    projection: str | None = None
    transposed: bool = False
    copy_of: str | None = None

    @property
    def prunable(self) -> bool:
        return self.role in PRUNABLE


def expression(names: str, before: str = "", after: str = "") -> str:
    """Returns the regular expression of names in the notation of `Family`. The layer's number is its group `layer`."""

    def one(name: str) -> str:
        name = name.replace(".", r"\.").replace("*", r"\d+")
        name = re.sub(r"\{([^}]*)\}", lambda m: f"(?:{m[1].replace(',', '|')})", name)
        return re.sub(r"\[([^]]*)\]", r"(?:\1)?", name)

    start = one(before).replace(r"\d+", r"(?P<layer>\d{1,6})") + r"\." if before else ""
    return f"{start}(?:{'|'.join(one(name) for name in names.split())}){after}"


@cache
def table(model_type: str) -> tuple[tuple[str, str, int], ...]:
    """Returns (pattern of a name, role, least number of dimensions) in the order in which they are tried."""
    f = family(model_type)
    rows = [
        (f.buffers, expression(f.buffers, f.layer), "buffer", 0),
        (f.attention, expression(f.attention, f.layer, r"\.weight"), "attention", 2),
        (f.mlp, expression(f.mlp, f.layer, r"\.weight"), "mlp", 2),
        (f.fused, expression(f.fused, f.layer), "mlp", 3),
        (f.embeddings, expression(f.embeddings, after=r"\.weight"), "embeddings", 2),
        (f.lm_head, expression(f.lm_head, after=r"\.weight"), "lm_head", 2),
        (f.norms, expression(f.norms, f.layer, r"\.weight"), "norm", 2),
        (f.router, expression(f.router, f.layer, r"\.weight"), "router", 2),
        (f.positions, expression(f.positions, after=r"\.weight"), "positions", 2),
    ]
    return tuple(row[1:] for row in rows if row[0])


def family(model_type: str, what: str = "model") -> Family:
    """Returns the family of a model_type. Raises InputError, which begins with `what`, when none has it."""
    if not model_type:
        raise InputError(f"{what}: its config.json names no model_type; give a causal language model of transformers")
    for found in FAMILIES:
        if model_type in found.models.split():
            return found
    known = sorted(name for f in FAMILIES for name in f.models.split())
    raise InputError(f"{what}: its architecture {model_type!r} is not known here; known: {', '.join(known)}")


def classify(tensors: Mapping[str, Sequence[int]], model_type: str) -> list[Place]:
    """Returns the place of every checkpoint tensor (name -> shape), in the given order.

    Raises InputError for an unknown family or tensor. To skip an unknown matrix would make every sparsity that is
    reported for the model wrong.
    """
    transposed = family(model_type).transposed
    places = []
    for name, shape in tensors.items():
        for pattern, role, dimensions in table(model_type):
            if len(shape) >= dimensions and (match := re.fullmatch(pattern, name)):
                layer = match.groupdict().get("layer")
                inside = role in ("attention", "mlp")
                places.append(
                    Place(
                        name,
                        role,
                        int(layer) if layer else None,
                        name.removesuffix(".weight").rsplit(".", 1)[-1] if inside else None,
                        transposed and inside,
                    )
                )
                break
        else:
            vector = len(shape) <= 1
            role = "norm" if re.fullmatch(NORM, name) else "bias" if re.fullmatch(BIAS, name) else ""
            if not vector or not role:
                raise InputError(
                    f"model: its tensor {name!r} of shape {list(shape)} is not known for the architecture {model_type!r}"
                )
            places.append(Place(name, role))
    return places


def head_name(model_type: str) -> str:
    """Returns the name of the head in a checkpoint of the family."""
    return re.sub(r"\{([^,]*),.*\}", r"\1", family(model_type).lm_head) + ".weight"


def embeddings_name(model_type: str, tensors: Iterable[str]) -> str:
    """Returns the name of the embeddings in a checkpoint, with or without the prefix that its other tensors have."""
    prefix, _, table = family(model_type).embeddings.removeprefix("[").rpartition("]")
    prefixed = any(name.startswith(prefix) for name in tensors)
    return f"{prefix if prefixed else ''}{table}.weight"


def is_buffer(name: str, model_type: str) -> bool:
    """Returns whether a tensor is one that transformers computes again."""
    return any(role == "buffer" and re.fullmatch(pattern, name) for pattern, role, _ in table(model_type))


def projection_names(name: str) -> list[str]:
    """Returns the names of a matrix in a target: `c_proj`, and also `attn.c_proj`, because `mlp.c_proj` has the same
    last part."""
    parts = name.removesuffix(".weight").split(".")
    return [parts[-1], *(f"{a}.{b}" for a, b in list(pairwise(parts))[-1:] if not a.isdigit())]
