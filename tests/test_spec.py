"""Parameters, and the identity that they give."""

import pytest

from lottery.errors import InputError
from lottery.spec import Spec, dense_id, ticket_id


def test_the_identity_of_a_ticket_is_pinned() -> None:
    spec = Spec.parse(target="late", sparsity="0.50")
    base = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    assert ticket_id(spec, base, ["x.weight", "y.weight"]) == "10cfaf51cb87"
    assert dense_id(base) == "baf78d467ed6"
    assert (
        ticket_id(Spec.parse(target="late", seed=7), base, ["y.weight", "x.weight"]) == "10cfaf51cb87"
    )  # nothing drawn
    drawn = {ticket_id(Spec.parse(method="random", seed=s), base, ["x.weight"]) for s in (0, 1)}
    assert len(drawn) == 2


def test_values_as_typed_and_as_python() -> None:
    assert Spec.parse(sparsity="0.50") == Spec.parse(sparsity=0.5) == Spec()
    assert Spec.parse(window="512", limit=3).params()["window"] == "512"
    assert Spec.parse(measure="speed,perplexity").measures == ("perplexity", "speed")
    assert Spec.parse(sparsity="0.3333333").params()["sparsity"] == "0.3333333"
    spec = Spec.parse(measure="speed,perplexity")
    assert (
        spec.first_difference({"sparsity": "0.50", "measure": "speed, perplexity", "target": " all", "foo": "1"})
        is None
    )
    assert spec.first_difference({"sparsity": "0.51"}) == "sparsity"


@pytest.mark.parametrize(
    "given",
    [{"sparsity": v} for v in ("nan", "-0.1", "1.01", "half", "", None, "inf")]
    + [{"window": v} for v in ("1", "0", "x", "1.5")]
    + [
        {"limit": "0"},
        {"seed": "-1"},
        {"tolerance": "-1"},
        {"control": "-1"},
        {"quantize": "int4"},
        {"quantize": "int8", "storage": "mask"},
    ]
    + [{"pattern": "2:4", "sparsity": 0.6}, {"pattern": "4:8", "scope": "global"}, {"pattern": "1:4"}]
    + [{"nsamples": "0"}, {"nsamples": "auto"}, {"seqlen": "1"}, {"propagate": "sparse"}, {"calibration": " "}]
    + [
        {"sparsity": 1, "method": "sparsegpt"},
        {"scope": "row", "method": "refit"},
        {"scope": "global", "method": "wanda"},
    ]
    + [{"storage": "mask", "method": method} for method in ("refit", "sparsegpt")]
    + [{"measure": "perplexity,foo"}, {"method": "wandas"}, {"target": " "}, {"sparcity": 0.5}, {"dtype": "int8"}],
)
def test_a_wrong_value_is_named(given: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        Spec.parse(**given)
    assert next(iter(given)) in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_calibrated_method_s_tickets_are_called() -> None:
    assert Spec.parse(method="wanda").title == "all 50% wanda"
    given = {"calibration": "texts/my.txt", "nsamples": 8, "seqlen": 64, "propagate": "pruned", "seed": 1}
    assert (
        Spec.parse(method="wanda", **given).title == "all 50% wanda my.txt nsamples=8 seqlen=64 propagate=pruned seed=1"
    )
    assert Spec.parse(**given).title == "all 50%"  # magnitude looks at no data
