"""The target language, on the names of a real architecture."""

import pytest
import transformers

from lottery.spec import InputError
from lottery.targets import choose, classify


def names(layers: int = 5, tied: bool = False) -> list[str]:
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=1,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip
    found = list(transformers.LlamaForCausalLM(config).state_dict())
    return [n for n in found if not (tied and n == "lm_head.weight")]


PLACES = classify([*names(), "model.layers.0.self_attn.rotary_emb.inv_freq"], "llama")
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


def test_a_tied_head_is_named_as_such() -> None:
    with pytest.raises(InputError, match="tied"):
        choose("lm_head", classify(names(tied=True), "llama"))


def test_every_parameter_has_its_place_and_strangers_are_refused() -> None:
    roles = {p.name: p.role for p in PLACES}
    assert set(roles.values()) == {"attention", "mlp", "embeddings", "lm_head", "norm", "bias", "buffer"}
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.router\.weight"):
        classify([*names(), "model.layers.0.mlp.router.weight"], "llama")
    with pytest.raises(InputError, match="known: llama, mistral"):
        classify(names(), "mamba")
