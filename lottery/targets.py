"""Where weights live: checkpoint tensor name -> component and layer, and a target expression -> the tensors it means."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lottery.spec import InputError, nearest

PRUNABLE = ("attention", "mlp", "embeddings", "lm_head")

# One row a kind of tensor: a pattern of its checkpoint name, and its role. The groups `layer` and `projection` say
# where a matrix stands. Roles outside PRUNABLE are stored as they were, except `buffer`: computed anew, so left out.
LLAMA = (
    (r"model\.layers\.(?P<layer>\d+)\.self_attn\.(?P<projection>[qkvo]_proj)\.weight", "attention"),
    (r"model\.layers\.(?P<layer>\d+)\.mlp\.(?P<projection>gate_proj|up_proj|down_proj)\.weight", "mlp"),
    (r"model\.embed_tokens\.weight", "embeddings"),
    (r"lm_head\.weight", "lm_head"),
    (r"model\.layers\.\d+\.(input|post_attention)_layernorm\.weight", "norm"),
    (r"model\.norm\.weight", "norm"),
    (r"model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj\.bias", "bias"),
    (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "buffer"),
)

# config.json's model_type -> its table.
FAMILIES = {"llama": LLAMA, "mistral": LLAMA}


@dataclass(frozen=True)
class Place:
    """Where one checkpoint tensor stands in the model."""

    name: str
    role: str
    layer: int | None
    projection: str | None

    @property
    def prunable(self) -> bool:
        return self.role in PRUNABLE


def classify(names: Iterable[str], model_type: str) -> list[Place]:
    """Every checkpoint tensor's place, in the order given.

    Raises InputError for a family or a tensor that no table knows: passing a matrix over in silence would make every
    sparsity reported for the model a lie.
    """
    if model_type not in FAMILIES:
        raise InputError(
            f"model: its architecture {model_type!r} is not known here; known: {', '.join(sorted(FAMILIES))}"
        )
    places = []
    for name in names:
        for pattern, role in FAMILIES[model_type]:
            if match := re.fullmatch(pattern, name):
                found = match.groupdict()
                layer = None if found.get("layer") is None else int(found["layer"])
                places.append(Place(name, role, layer, found.get("projection")))
                break
        else:
            raise InputError(f"model: its tensor {name!r} is not known for the architecture {model_type!r}")
    return places


def layer_range(term: str, layers: str, count: int) -> range:
    """`early`, `late`, `7` or `8-15` of a model with `count` decoder layers."""
    if layers == "early":
        return range(count // 2)
    if layers == "late":
        return range(count // 2, count)
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", layers):
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < count:
            return range(first, last + 1)
    raise InputError(
        f"target={term}: {layers!r} names no layers; this model has layers 0-{count - 1}: "
        f"give early, late, one number or FIRST-LAST"
    )


def choose(target: str, places: Sequence[Place]) -> list[Place]:
    """The prunable tensors that a target expression means, in checkpoint order, each once.

    Raises InputError where a term is unknown or matches nothing.
    """
    count = 1 + max((p.layer for p in places if p.layer is not None), default=-1)
    projections = sorted({p.projection for p in places if p.projection})
    chosen: set[str] = set()
    for term in (t.strip() for t in target.split("+")):
        component, at, layers = term.partition("@")
        if term in ("early", "late"):
            component, at, layers = "all", "@", term
        if component == "all":
            found = [p for p in places if p.role in ("attention", "mlp")]
        elif component in PRUNABLE:
            found = [p for p in places if p.role == component]
        elif component in projections:
            found = [p for p in places if p.projection == component]
        elif component in ("early", "late"):
            raise InputError(f"target={target}: {component} takes no @LAYERS; give a component, as in mlp@{component}")
        else:
            known = ("all", "early", "late", *PRUNABLE, *projections)
            raise InputError(f"target={target}: {component!r} is unknown; {nearest(component, known)}")
        if at:
            inside = layer_range(term, layers, count)
            found = [p for p in found if p.layer is not None and p.layer in inside]
        if not found:
            tied = component == "lm_head" and not any(p.role == "lm_head" for p in places)
            why = "the head is the embedding matrix itself (tied); prune embeddings" if tied else "it is in no layer"
            raise InputError(f"target={target}: {term!r} matches no tensor of this model: {why}")
        chosen |= {p.name for p in found}
    return [p for p in places if p.name in chosen]
