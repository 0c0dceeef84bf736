"""Loads a base or a ticket from disk as a transformers model."""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from lottery.errors import InputError
from lottery.files.facts import find_fact
from lottery.kernels.parallel import THREADS
from lottery.models.architecture import model_class, read_config, transformers_errors
from lottery.models.headers import TensorInfo
from lottery.models.tensors import DTYPES
from lottery.progress import say
from lottery.runtime.layers import PackedLinear, Workspace, check_int8, int8_linear
from lottery.ticket.stored import StoredTicket


class TensorSource(Protocol):
    """What a model is loaded from: a `Base` or a `StoredTicket`."""

    @property
    def dtype(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def info(self, name: str) -> TensorInfo: ...
    def tensor(self, name: str) -> torch.Tensor: ...


class LazyTensor:
    """One value of a state dict. It is read, checked and unpacked only when the loader asks for it."""

    def __init__(self, source: TensorSource, name: str) -> None:
        self.source, self.name = source, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.source.tensor(self.name)[index]

    def get_shape(self) -> list[int]:
        return list(self.source.info(self.name).shape)

    def get_dtype(self) -> str:
        return self.source.info(self.name).dtype


class PlaceholderTensor(LazyTensor):
    """Stands for a matrix that will lie in a layer of ours. It has the matrix's shape, and the memory of one number."""

    def __init__(self, source: TensorSource, name: str, dtype: torch.dtype) -> None:
        super().__init__(source, name)
        self.one = torch.empty(1, dtype=dtype)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.one.expand(self.source.info(self.name).shape)[index]


class MetaTensor(LazyTensor):
    """A tensor without its values, which is enough to see whether the model has a place for it."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        info = self.source.info(self.name)
        return torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta")[index]


def check_loadable(source: TensorSource, names: Iterable[str]) -> None:
    """Checks that the files make a model, without reading a weight. Raises InputError as `load_model` does.

    transformers takes a second for it, so what was found in order once is not checked again.
    """
    tensors = {name: [source.info(name).dtype, *source.info(name).shape] for name in names}

    def check() -> bool:
        assemble(source, {name: MetaTensor(source, name) for name in tensors}, "float32", "meta")
        return True

    find_fact("loadable", [source.folder / "config.json", source.folder / "generation_config.json"], tensors, check)


def load_model(source: TensorSource, names: Iterable[str], dtype: str, device: str, runtime: str = "dense") -> Any:
    """Returns the model with exactly the named tensors, in evaluation mode.

    `runtime` is dense, packed or sparse: it says how the matrices lie in memory. Raises InputError where a tensor is missing,
    left over or damaged; transformers itself would fill a missing tensor with random numbers.
    """
    experts: dict[str, list[str]] = {}  # the tensors of each module of experts that stays packed
    if runtime == "sparse" and device == "cpu" and isinstance(source, StoredTicket):
        from lottery.runtime.experts import packed_experts  # loads compiled kernels

        experts = packed_experts(source)
    apart = {name for layer in experts.values() for name in layer}
    small = packed_or_8_bit_matrices(source, runtime, apart)
    placeholders = {name: PlaceholderTensor(source, name, getattr(torch, dtype)) for name in small}
    state = {name: placeholders.get(name) or LazyTensor(source, name) for name in names if name not in apart}
    if not (placeholders or experts) or not isinstance(source, StoredTicket):
        return assemble(source, state, dtype, device)
    model = assemble(source, state, dtype, "cpu", list(experts))
    replace_layers(model, source, placeholders, experts, device, runtime)
    return model.to(device)


def packed_or_8_bit_matrices(source: TensorSource, runtime: str, apart: Collection[str] = ()) -> list[str]:
    """Returns the tensors that will lie in layers of ours: 8-bit ones, and with `runtime` packed or sparse those packed on disk.

    Each is the weight of one linear layer. Embeddings are looked up, and transformers holds all experts of a layer in
    one tensor, so both are unpacked at loading, but for the experts `apart`. Warns where that is the case.
    """
    if not isinstance(source, StoredTicket):
        return []
    small: list[str] = []
    unpacked: list[str] = []
    for name, entry in source.entries.items():
        packed = runtime != "dense" and (entry.get("packed") or (source.is_mask_only and "kept" in entry))
        if name in apart or (not packed and "quantized" not in entry):
            continue
        linear = entry["role"] in ("attention", "mlp") or (entry["role"] == "lm_head" and runtime != "dense")
        linear = linear and len(entry["shape"]) == 2 and ".experts." not in name
        (small if linear else unpacked).append(name)
    if unpacked:
        say(
            f"warning: {len(unpacked)} matrices ({unpacked[0]}, ...) are not linear layers of their own and lie dense in memory"
        )
    elif runtime != "dense" and not small and not apart:
        say(f"warning: runtime={runtime}: this ticket has no packed matrix, so that it runs as with runtime=dense")
    return small


def replace_layers(
    model: Any,
    source: StoredTicket,
    placeholders: Mapping[str, PlaceholderTensor],
    experts: Mapping[str, list[str]],
    device: str,
    runtime: str,
) -> None:
    """Replaces the layer of each placeholder by a layer over the stored matrix, and fills the empty experts."""
    waiting = {placeholder.one.data_ptr(): name for name, placeholder in placeholders.items()}
    layers = [
        (path, module, waiting.pop(weight.data_ptr()))
        for path, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.data_ptr() in waiting
    ]
    assert not waiting, f"no layer took {sorted(waiting.values())[:3]}"
    empty = [(model.get_submodule(path), names) for path, names in experts.items()]
    largest = max([source.info(name).numel for _, _, name in layers] + [module.numel for module, _ in empty])
    workspace = None
    layer_class = PackedLinear
    if runtime == "sparse":
        from lottery.kernels.product import pick_kernel  # these load compiled kernels
        from lottery.runtime.sparse import SparseLinear, use_products

        layer_class = SparseLinear
    if runtime == "dense" and any(source.entries[name].get("quantized") == "int8" for name in placeholders):
        check_int8(device)
    for path, module, name in layers:
        matrix, bias = source.matrix(name), getattr(module, "bias", None)
        if runtime == "dense":
            matrix = matrix.unpack()
        if matrix.quantized == "int8" and runtime == "dense":
            layer = int8_linear(matrix, bias, device)
        else:
            workspace = workspace or Workspace(largest, model.dtype, device)
            layer = layer_class(matrix, bias, workspace, device, PRODUCTS.get(type(module).__name__, "linear"))
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.eval())
    for module, names in empty:
        workspace = workspace or Workspace(largest, model.dtype, device)
        module.fill(source, names, workspace)
    model.requires_grad_(False)
    if runtime == "sparse":
        use_products(model, product_threads(), pick_kernel(), device)
    if isinstance(head := model.get_output_embeddings(), torch.nn.Linear | PackedLinear):
        head.register_forward_pre_hook(make_input_contiguous)
    model.save_pretrained = cannot_save


def product_threads() -> int:
    """Returns how many threads multiply few tokens: as many as torch uses, and no more than the job has processors."""
    asked = torch.get_num_threads()
    if asked > THREADS:
        warn_of_threads(asked)
    return min(asked, THREADS)


@functools.cache  # a run loads several models, and says this once
def warn_of_threads(asked: int) -> None:
    say(
        f"warning: OMP_NUM_THREADS={asked}: this job has {THREADS} processors; products of few tokens use {THREADS} threads"
    )


def make_input_contiguous(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Copies the input of a head into contiguous memory, for speed.

    torch computes the product of a slice of a tensor and a weight without gradients as a batch of products: for the
    last token of a prompt and the head of Mistral 7B, in bfloat16 on a CPU, that takes 700 ms instead of 19.
    """
    return (given[0].clone(memory_format=torch.contiguous_format), *given[1:])


def without_experts(cls: Any, paths: list[str]) -> Any:
    """Returns a class of the same models whose modules at `paths` are empty experts of ours.

    transformers builds and loads a model in one call, and would fill dense experts with random numbers.
    """
    from lottery.runtime.experts import leave_out

    def init(self: Any, *given: Any, **named: Any) -> None:
        cls.__init__(self, *given, **named)
        leave_out(self, paths)

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__})


def assemble(
    source: TensorSource, state: Mapping[str, LazyTensor], dtype: str, device: str, experts: Sequence[str] = ()
) -> Any:
    """Builds the transformers model from `state`, without the experts at these paths.

    Raises InputError where the tensors are not those of the model.
    """
    import transformers

    config = read_config(source.folder)
    cls = model_class(config, source.folder)
    transformers.logging.disable_progress_bar()  # the progress line of the caller says that it loads
    with transformers_errors(source.folder, "config.json"):
        model, loading_info = (without_experts(cls, list(experts)) if experts else cls).from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            **({"device_map": {"": device}} if device != "cpu" else {}),
        )
    model.__class__ = cls  # again
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if loading_info[kind]:
            problem = kind.replace("_", " ")
            raise InputError(
                f"model={source.folder}: {problem} at loading: {', '.join(map(str, sorted(loading_info[kind])[:3]))}"
            )
    if device != "meta":
        choose_experts(model, source.folder)
    if (source.folder / "generation_config.json").is_file():
        with transformers_errors(source.folder, "generation_config.json"):
            model.generation_config = transformers.GenerationConfig.from_pretrained(source.folder)
    return model.eval()


def choose_experts(model: Any, folder: Path) -> None:
    """Computes experts one after the other where transformers' grouped product cannot.

    transformers multiplies all experts of a layer in one product. That product needs rows of whole 16 bytes.
    """
    tensors = [*model.parameters(), *(p for m in model.modules() for p in getattr(m, "left_out", ()))]
    odd = [p for p in tensors if p.dim() == 3 and p.shape[-1] * p.itemsize % 16]
    if odd and getattr(model.config, "_experts_implementation", None) == "grouped_mm":
        model.set_experts_implementation("eager")
        dtype = str(odd[0].dtype).removeprefix("torch.")
        say(
            f"warning: model={folder}: its experts are computed one after the other: their rows of {odd[0].shape[-1]} "
            f"{dtype} numbers are no multiple of 16 bytes, which a single product of all experts needs"
        )


# How the layers multiply that are not torch's own, by class name: the order of the operations decides the last bits.
PRODUCTS = {"Conv1D": "conv1d", "FalconLinear": "bias after"}


def cannot_save(*_: Any, **__: Any) -> None:
    raise InputError(
        "save_pretrained: this ticket's layers are packed or in 8 bits in memory, and other libraries cannot read "
        "them; keep the ticket's folder"
    )
