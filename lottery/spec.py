"""The parameters of one run, with their defaults and checks, and the identity of a ticket."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lottery.errors import InputError as InputError  # scripts of earlier versions find both errors here
from lottery.errors import MachineError as MachineError
from lottery.errors import did_you_mean
from lottery.parameters import float_range, int_range, nonempty_text, one_of, owl_numbers, parameter, parse_allocation

FORMAT_VERSION = 1  # the version of the ticket's folder; it is part of every ticket's identity


QUANTIZATIONS = ("fp8", "int8")


@dataclass(frozen=True)
class Method:
    """What other code must know of a method before it runs: whether it looks at data, whether it needs the Gram matrix
    of the inputs, whether it changes the weights that stay, what `propagate=auto` means for it, and whether it solves the
    matrices of a block in the order in which they compute, each on what the pruned ones before it give."""

    calibrated: bool = False
    gram: bool = False
    updates: bool = False
    propagate: str = "dense"
    in_order: bool = False
    trained: bool = False  # `lottery hypothesis` makes such tickets by training
    revision: int = 1  # it grows where the method makes other tickets than it did under the same name


METHODS = {
    "magnitude": Method(),
    "random": Method(),
    "wanda": Method(calibrated=True),
    "swaps": Method(calibrated=True, gram=True),
    "refit": Method(calibrated=True, gram=True, updates=True),
    "sparsegpt": Method(calibrated=True, gram=True, updates=True, propagate="pruned"),
    "alps": Method(calibrated=True, gram=True, updates=True, propagate="pruned"),
    "repair": Method(calibrated=True, gram=True, updates=True, propagate="pruned", in_order=True, revision=2),
    "hypothesis": Method(updates=True, trained=True),
}
# What fixes a ticket's bytes beside model, target, sparsity and method.
FIXING = (
    "scope",
    "allocation",
    "calibration",
    "nsamples",
    "seqlen",
    "propagate",
    "pattern",
    "quantize",
    "storage",
    "seed",
)
MEASURES = ("perplexity", "speed", "memory", "samples")


def parse_measure(name: str, value: Any) -> str:
    words = [w.strip() for w in str(value).split(",")]
    if words in (["all"], ["none"]):
        return words[0]
    for word in words:
        if word not in MEASURES:
            raise InputError(f"{name}={value}: {did_you_mean(word, ('all', 'none', *MEASURES))}")
    return ",".join(m for m in MEASURES if m in words)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The parameters of one ticket and of its measurement: the command line, MLproject and `lottery.prune` take the
    same ones."""

    model: str = parameter(
        "builtin",
        "The model to prune: a base, or a ticket to prune further.",
        **nonempty_text("builtin, a local folder, a hub id (ORG/NAME, ORG/NAME@REVISION), models:/NAME/VERSION"),
    )
    target: str = parameter(
        "all",
        "Which weights: all, attention, mlp, early, late, embeddings, lm_head, a projection; with @LAYERS; joined by +.",
        **nonempty_text(
            "all, attention, mlp, early, late, embeddings, lm_head, q_proj, mlp@8-15, attention+lm_head, ..."
        ),
    )
    sparsity: float = parameter(0.5, "Share of the targeted weights to remove.", **float_range(0, 1))
    method: str = parameter(
        "magnitude",
        "Which weights are removed first: the smallest, random ones, or by a method that looks at data.",
        parse=one_of(*METHODS)["parse"],
        values=", ".join(name for name, method in METHODS.items() if not method.trained),
    )
    scope: str = parameter(
        "layer", "Sparsity per tensor, per output row, or over all together.", **one_of("layer", "row", "global")
    )
    allocation: str = parameter(
        "uniform",
        "How the sparsity is spread: evenly, by outliers (owl), by spectra (alpha), or by a file.",
        parse=parse_allocation,
        values="uniform, owl, owl:M:LAMBDA, alpha, or a .yaml file: tensors or layers -> sparsity",
    )
    calibration: str = parameter(
        "auto",
        "Text that the method looks at; auto: self for the embedded model, else c4.",
        **nonempty_text(
            "auto, self (the dense model writes it), c4, wikitext2-train, builtin, or a .txt, .jsonl or .parquet file"
        ),
    )
    nsamples: int = parameter(32, "Calibration samples; papers use 128.", **int_range(1))
    seqlen: int | str = parameter(
        "auto", "Tokens of a calibration sample; auto: what the model takes, at most 2048.", **int_range(2, word="auto")
    )
    propagate: str = parameter(
        "auto",
        "What a block sees of the blocks before it: dense or pruned; auto: by the method.",
        **one_of("auto", "dense", "pruned"),
    )
    pattern: str = parameter(
        "unstructured",
        "Which weights may become zero: any, or a fixed number in each group.",
        **one_of("unstructured", "2:4", "4:8"),
    )
    quantize: str = parameter(
        "none", "Store attention and MLP matrices, and what is targeted, in 8 bits.", **one_of("none", *QUANTIZATIONS)
    )
    storage: str = parameter("packed", "Self-contained, or masks over a base.", **one_of("packed", "mask"))
    dataset: str = parameter(
        "auto",
        "Evaluation text; auto: the embedded text for the embedded model, else wikitext2.",
        **nonempty_text("auto, builtin, wikitext2, or a .txt, .jsonl or .parquet file"),
    )
    window: int | str = parameter(
        "auto", "Tokens per window; auto: what the model takes, at most 2048.", **int_range(2, word="auto")
    )
    limit: int | str = parameter(
        "none", "Measure only the first N windows; such a ticket is not judged.", **int_range(1, word="none")
    )
    dtype: str = parameter(
        "auto", "Arithmetic of measuring and loading.", **one_of("auto", "source", "float16", "bfloat16", "float32")
    )
    runtime: str = parameter(
        "dense",
        "How weights lie in memory; packed: as in the file, unpacked layer by layer; sparse: packed, and few tokens are multiplied without unpacking.",
        **one_of("dense", "packed", "sparse"),
    )
    measure: str = parameter(
        "all", "What to measure.", parse=parse_measure, values=f"all, none, or some of {','.join(MEASURES)}"
    )
    control: int = parameter(0, "How many random tickets of the same size to measure for comparison.", **int_range(0))
    tolerance: float = parameter(0.10, "What a winner may lose: ratio at most 1 + tolerance.", **float_range(0, 10))
    seed: int = parameter(0, "Seed of the random numbers.", **int_range(0))
    device: str = parameter("auto", "Where to measure.", **one_of("auto", "cpu", "cuda"))
    register: str = parameter(
        "auto", "Name of the registered model; auto: ticket-BASE.", **nonempty_text("auto, none, or a name")
    )

    @classmethod
    def parse(cls, **given: Any) -> "Spec":
        """Checks every parameter, which may come as text of a command line or as a Python value.

        Raises InputError for an unknown name, for a value that a parameter does not take, and for values that exclude
        each other.
        """
        table = {f.name: f for f in fields(cls)}
        for name in given:
            if name not in table:
                raise InputError(f"unknown parameter {name}: {did_you_mean(name, table)}")
        spec = cls(**{name: table[name].metadata["parse"](name, value) for name, value in given.items()})
        if spec.pattern != "unstructured":
            if spec.sparsity != 0.5:
                raise InputError(
                    f"pattern={spec.pattern}: it removes half of the weights, which sparsity={spec.sparsity:g} contradicts; "
                    f"give sparsity=0.5, or pattern=unstructured"
                )
            if spec.scope == "global":
                raise InputError(
                    f"pattern={spec.pattern}: it selects weights group by group, which scope=global contradicts; give scope=layer"
                )
            if spec.scope == "row":
                raise InputError(
                    f"pattern={spec.pattern}: its groups lie within a row already, so that scope=row changes nothing; give scope=layer"
                )
            if spec.allocation == "alpha" or owl_numbers(spec.allocation):
                raise InputError(
                    f"allocation={spec.allocation}: it gives some layers more than half, and pattern={spec.pattern} removes "
                    f"half of each; give allocation=uniform, or pattern=unstructured"
                )
        if spec.allocation != "uniform" and spec.scope == "global":
            raise InputError(
                f"allocation={spec.allocation}: with scope=global the weights decide how much each tensor loses; "
                f"give scope=layer, or allocation=uniform"
            )
        method = METHODS[spec.method]
        if method.calibrated and spec.scope != "layer":
            raise InputError(
                f"scope={spec.scope}: method={spec.method} brings its own groups of weights; give scope=layer, or method=magnitude"
            )
        if method.calibrated and spec.sparsity == 1:
            raise InputError(f"sparsity=1: method={spec.method} has no weights left to choose; give a sparsity below 1")
        if method.in_order and spec.propagate == "dense":
            raise InputError(
                f"propagate=dense: method={spec.method} makes up for what earlier blocks lost, so it must see what they give; "
                f"give propagate=pruned, or method=refit"
            )
        if method.updates and spec.storage == "mask":
            raise InputError(
                f"storage=mask: it takes the weights that stay from the base, but method={spec.method} changes them; "
                f"give storage=packed, or method=swaps"
            )
        if spec.quantize != "none" and spec.storage == "mask":
            raise InputError(
                f"quantize={spec.quantize}: storage=mask stores masks over a base and no values; give storage=packed, "
                f"or quantize=none"
            )
        if spec.control and "perplexity" not in spec.measures:
            raise InputError(
                f"control={spec.control}: controls are compared by their perplexity, but measure={spec.measure} leaves "
                f"that out; give control=0, or measure=perplexity"
            )
        return spec

    @property
    def measures(self) -> tuple[str, ...]:
        """What to measure, as a tuple of the names in MEASURES."""
        if self.measure in ("all", "none"):
            return MEASURES if self.measure == "all" else ()
        return tuple(self.measure.split(","))

    @property
    def is_calibrated(self) -> bool:
        """Whether the method looks at data."""
        return METHODS[self.method].calibrated

    @property
    def looks_at_data(self) -> bool:
        """Whether the method or the allocation looks at data."""
        return self.is_calibrated or owl_numbers(self.allocation) is not None

    @property
    def title(self) -> str:
        """The shortest text that tells tickets of one base apart: target, sparsity, and what is not the default."""
        words = [self.target, f"{100 * self.sparsity:g}%"]
        default = {f.name: f.default for f in fields(self)}
        for name in ("method", "scope", "allocation", "pattern", "quantize"):
            words += [short_base(getattr(self, name))] if getattr(self, name) != default[name] else []
        return " ".join([*words, *calibration_words(self.params())])

    def identity_params(self) -> dict[str, Any]:
        """Returns the parameters that, with the base and the chosen tensors, determine a ticket's bytes. Of an allocation's
        file its content counts, which stands in `Allocation.identity`."""
        names = ("sparsity", "method", "scope", "pattern", "quantize", "storage")
        drawn = {"seed": self.seed} if self.method == "random" else {}
        if (revision := METHODS[self.method].revision) > 1:
            drawn["revision"] = revision
        numbers = owl_numbers(self.allocation)
        spread = {"allocation": "owl:{:g}:{:g}".format(*numbers) if numbers else self.allocation}
        return {name: getattr(self, name) for name in names} | drawn | (spread if self.allocation != "uniform" else {})

    def params(self) -> dict[str, str]:
        """Returns every parameter as text, as MLflow records it."""
        return {name: str(value) for name, value in asdict(self).items()}

    def first_difference(self, params: Mapping[str, str]) -> str | None:
        """Returns the name of a recorded parameter that means another value than this spec's, or None when all agree.

        Values are compared after parsing: `0.50` means 0.5.
        """
        for name in self.params().keys() & params.keys():
            if getattr(Spec.parse(**{name: params[name]}), name) != getattr(self, name):
                return name
        return None


def calibration_words(params: Mapping[str, Any]) -> list[str]:
    """Returns what is not the default of a calibration, and the seed of what is drawn, in words.

    `params` are parameters of a ticket as they were recorded; one that is missing has its default.
    """
    method, default = str(params.get("method")), {f.name: str(f.default) for f in fields(Spec)}
    looks = METHODS.get(method, Method()).calibrated or owl_numbers(str(params.get("allocation")))
    names = ["calibration", "nsamples", "seqlen", "propagate"] if looks else []
    names += ["seed"] if names or method == "random" else []
    words = []
    for name in names:
        value = re.sub(r"\.0$", "", str(params.get(name)))  # a column of numbers makes 32.0 of 32
        if value not in (default[name], "None", "nan"):
            words.append(short_base(value) if name == "calibration" else f"{name}={value}")
    return words


def json_sha256(what: Any) -> str:
    """Returns the sha256 (hex) of the canonical JSON of `what`."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def ticket_id(
    spec: Spec,
    base_files: Mapping[str, str],
    tensors: Iterable[str],
    source: str | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """Returns the 12 hex digits that name a ticket's bytes.

    They are a hash of the base (`base_files`: file name -> sha256), of the chosen tensors, of the parameters that
    determine the bytes, of `source`, the ticket that was pruned further, if there was one, and of `calibration`: what
    was looked at (`Calibration.identity`, `Allocation.identity`).
    """
    further = {"source": source} if source else {}
    fixed = {
        "format": FORMAT_VERSION,
        "base": dict(base_files),
        "tensors": sorted(tensors),
        **further,
        **spec.identity_params(),
        **(calibration or {}),
    }
    return json_sha256(fixed)[:12]


def short_base(base: str) -> str:
    """Returns the short name of a base: a hub id without its organization, or the last part of a folder's path."""
    return base.rstrip("/").split("/")[-1]


def run_name(base: str, title: str) -> str:
    """Returns the name of a ticket's run and of its logged model, which tells tickets of several bases apart."""
    return f"{short_base(base)} {title}"


def dense_id(base_files: Mapping[str, str]) -> str:
    """Returns the 12 hex digits that name the dense base itself, which is the baseline of its tickets."""
    return json_sha256({"format": FORMAT_VERSION, "base": dict(base_files)})[:12]
