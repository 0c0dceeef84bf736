"""The target language, on the names of a real architecture."""

import pytest
import torch
import transformers

from lottery.errors import InputError
from lottery.models.families import classify
from lottery.models.targets import choose, notes


def names(layers: int = 5, tied: bool = False) -> dict[str, torch.Size]:
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=1,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip
    return {n: p.shape for n, p in transformers.LlamaForCausalLM(config).named_parameters()}


PLACES = classify({**names(), "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}, "llama")
COUNT = {"attention": 4, "mlp": 3, "all": 7}


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("all", 35), ("attention", 20), ("mlp", 15), ("embeddings", 1), ("lm_head", 1), ("q_proj", 5),
        ("early", 14), ("late", 21), ("all@early", 14), ("mlp@late", 9), ("attention@2", 4), ("down_proj@1-3", 3),
        ("attention+mlp", 35), ("early+late", 35), ("attention+q_proj", 20), ("embeddings+lm_head+mlp@0", 5),
    ],
)  # fmt: skip
def test_what_a_target_means(target: str, count: int) -> None:
    chosen = choose(target, PLACES)
    assert len(chosen) == len({p.name for p in chosen}) == count
    assert all(p.prunable for p in chosen)


def test_early_is_the_first_half_rounded_down() -> None:
    assert {p.layer for p in choose("early", PLACES)} == {0, 1}
    assert {p.layer for p in choose("late", PLACES)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("atention", "did you mean attention"), ("all@5", "layers 0-4"), ("all@3-1", "layers 0-4"), ("", "unknown"),
        ("mlp@middle", "layers 0-4"), ("lm_head@late", "in no layer"), ("norm", "unknown"), ("mlp++all", "unknown"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_an_error(target: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose(target, PLACES)


def test_a_tied_head_is_the_embeddings_or_a_copy_of_them() -> None:
    places = classify(names(tied=True), "llama")
    (head,) = choose("lm_head", places, "lm_head.weight")
    assert (head.name, head.role, head.copy_of) == ("lm_head.weight", "lm_head", "model.embed_tokens.weight")
    assert [p.copy_of for p in choose("embeddings+lm_head", places, "lm_head.weight")] == [None]
    assert "the same tensor" not in notes(choose("mlp", places, "lm_head.weight"), "lm_head.weight")


def test_every_parameter_has_its_place_and_strangers_are_refused() -> None:
    roles = {p.name: p.role for p in PLACES}
    assert set(roles.values()) == {"attention", "mlp", "embeddings", "lm_head", "norm", "bias", "buffer"}
    for name, shape in (
        ("model.layers.0.mlp.router.weight", (8, 8)),
        ("model.layers.0.mlp.up_proj.extra", (8,)),
        ("model.layers.0.big_norm.weight", (8, 8)),
        ("model.layers.0.mlp.up_proj.weight", (8,)),
    ):
        others = {n: s for n, s in names().items() if n != name}
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            classify({**others, name: shape}, "llama")
    with pytest.raises(InputError, match=r"known: .*llama, mistral"):
        classify(names(), "mamba")
