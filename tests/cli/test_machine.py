"""What the machine lacks, through the command: memory, a package, a mapping of a large file."""

import errno
import json
import mmap
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

import lottery
from lottery.errors import InputError
from lottery.models import checkpoint, devices
from lottery.runtime import layers
from tests.support.models import tiny_model
from tests.support.refused import refused


def test_int8_where_bitsandbytes_is_not_usable(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ("--model", tiny, "--quantize", "int8", "--out", tmp_path / "t", "--register", "none")
    refused(cli("prune", *arguments, "--measure", "memory", code=2), "quantize=int8", "runtime=packed", "fp8")
    assert not (tmp_path / "t").exists()  # known before any work
    cli("prune", *arguments, "--measure", "memory", "--runtime", "packed")
    with pytest.raises(InputError, match="quantize=int8"):
        lottery.load(tmp_path / "t")
    generate = ("generate", "--ticket", tmp_path / "t", "--tokens", 3)
    refused(cli(*generate, code=2), "quantize=int8", "runtime=packed")
    assert cli(*generate, "--runtime", "packed").stdout.startswith("The meaning of life is")
    assert cli(*generate, "--runtime", "sparse").stdout.startswith("The meaning of life is")
    refused(cli(*generate, "--runtime", "spares", code=2), "runtime=spares", "known: dense, packed, sparse")


def test_doctor_tries_bitsandbytes(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def int8(result: Result) -> dict[str, Any]:
        return next(check for check in json.loads(result.stdout)["checks"] if check["name"] == "int8")

    found = int8(cli("doctor", "--json"))
    assert found["fine"] and found["found"].startswith("bitsandbytes computes on c")

    def broken(*_: Any) -> None:
        raise OSError("libbitsandbytes_cpu.so: undefined symbol")

    with monkeypatch.context() as patch:
        patch.setattr(layers, "int8_linear", broken)
        found = int8(cli("doctor", "--json", code=1))
    assert not found["fine"] and "undefined symbol" in found["found"]
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)  # not there: its version is another check
    found = int8(cli("doctor", "--json"))
    assert found["fine"] and "ModuleNotFoundError" in found["found"]


def test_memory_is_estimated_first(tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "m", max_position_embeddings=10**9)
    common = ("--model", model, "--dataset", "builtin", "--register", "none")
    said = cli("prune", *common, "--window", 10**8, code=2).stderr
    assert "window=100000000: in addition to the weights it takes about" in said
    fits = int(said.split("give window=")[1])
    assert 1000 < fits < 10**8
    assert "fewer than one window" in cli("prune", *common, "--window", fits, code=2).stderr  # memory would do

    monkeypatch.setattr(devices, "free_bytes", lambda device: 10**5)
    refused(cli("prune", *common, code=2), "model=m: its", "weights take about", "; give measure=none")
    cli("prune", *common, "--measure", "none")


@pytest.mark.parametrize(
    ("given", "bytes_a_weight", "ways"),
    [
        (("--dtype", "float32"), 3, "dtype=source, or measure=none"),
        (("--dtype", "float32"), 1.5, "dtype=source with runtime=packed, or measure=none"),
        (("--dtype", "float32", "--runtime", "packed"), 1.5, "dtype=source, or measure=none"),
        (("--dtype", "float32", "--runtime", "sparse"), 1.5, "dtype=source, or measure=none"),
        (("--dtype", "source"), 1.5, "runtime=packed, or quantize=int8 or fp8, or measure=none"),
        (("--dtype", "source", "--storage", "mask"), 1.5, "runtime=packed, or measure=none"),
        (("--dtype", "source"), 0.5, "measure=none"),
    ],
)
def test_what_would_fit_is_offered(
    given: tuple[str, ...],
    bytes_a_weight: float,
    ways: str,
    tiny: Path,
    cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    numel = sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    monkeypatch.setattr(devices, "free_bytes", lambda device: int(bytes_a_weight * numel))
    common = ("--model", tiny, "--measure", "memory", "--register", "none", "--device", "cpu")
    result = cli("prune", *common, *given, code=2)
    refused(result, f"model=tiny: its {numel:,} weights")
    assert result.stderr.strip().endswith(f"are free; give {ways}")


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_the_job_s_limits_leave(
    version: int, tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's are those of a group above the process's own; what the file cache has of it is free."""

    root = tmp_path / "cgroup" / ("memory" if version == 1 else "")
    limit, usage, cache = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file")
    )
    none = str(2**63 - 4096) if version == 1 else "max"
    for folder, said in ((root / "job" / "step", none), (root / "job", "3000000")):
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in ((limit, said), (usage, "2950000"), ("memory.stat", f"anon 5\n{cache} 49999")):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "self").mkdir()
    groups = "4:cpu:/\n3:hugetlb,memory:/job/step\n0::/\n" if version == 1 else "0::/job/step\n"
    (tmp_path / "self" / "cgroup").write_text(groups)
    (tmp_path / "self" / "statm").write_text("1000 10 10\n")
    (tmp_path / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:   1000000 kB\n")
    monkeypatch.setattr(devices, "PROC", tmp_path)
    monkeypatch.setattr(devices, "CGROUP", tmp_path / "cgroup")
    assert devices.free_bytes("cpu") == 99999
    common = ("--model", tiny, "--measure", "memory", "--register", "none", "--device", "cpu")
    refused(cli("prune", *common, code=2), "model=tiny", "0.0 GB are free")
    (root / "job" / limit).write_text(none)
    assert devices.free_bytes("cpu") == 1000000 * 1024
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**8, 10**8))
    assert devices.free_bytes("cpu") == 10**8 - 1000 * resource.getpagesize()


def sparse_model(folder: Path, nbytes: int) -> Path:
    """A Llama of at least so many bytes of zeros, which take no space on the disk."""
    hidden, words = 4096, 1000
    of_layer: dict[str, tuple[int, ...]] = {f"self_attn.{p}_proj": (hidden, hidden) for p in "qkvo"}
    of_layer |= {f"mlp.{p}_proj": (4 * hidden, hidden) for p in ("gate", "up")} | {
        "mlp.down_proj": (hidden, 4 * hidden)
    }
    of_layer |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    depth = 1 + nbytes // sum(2 * torch.Size(shape).numel() for shape in of_layer.values())
    shapes = {"model.embed_tokens": (words, hidden), "model.norm": (hidden,), "lm_head": (words, hidden)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(depth) for name, shape in of_layer.items()}
    header: dict[str, object] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * torch.Size(shape).numel()
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    said = json.dumps(header).encode()
    said = said.ljust(-(-len(said) // 8) * 8)
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as f:
        f.write(len(said).to_bytes(8, "little") + said)
        f.truncate(8 + len(said) + at)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": 4 * hidden,
        "num_hidden_layers": depth, "num_attention_heads": 32, "vocab_size": words, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_file_larger_than_memory(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses a private mapping of one, unless nothing is reserved for it; a plan needs none at all."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    folder = sparse_model(tmp_path / "m", 5 * memory // 4)
    monkeypatch.setattr(checkpoint, "sha256_of_files", lambda paths: {})  # a minute, of zeros
    plan = lottery_json("plan", "--model", folder)
    assert plan["parameters"] > memory / 2
    name = next(n for n in plan["tensors"] if n.endswith("layers.7.mlp.down_proj.weight"))
    base = checkpoint.Base(folder, "m", tied=False)
    assert not any("data" in vars(shard) for shard in base._shards.values())
    assert not base.tensor(name).any()


def test_a_mapping_that_the_kernel_refuses_is_of_memory(
    tiny: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = mmap.mmap

    def refuse(fd: int, *arguments: Any, **how: Any) -> mmap.mmap:
        if fd >= 0:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return own(fd, *arguments, **how)

    monkeypatch.setattr(mmap, "mmap", refuse)
    arguments = ("--model", tiny, "--dataset", "builtin", "--measure", "memory", "--register", "none")
    result = cli("prune", *arguments, "--storage", "mask", code=1)
    refused(result, "out of memory; give a smaller window, runtime=packed, or measure=none")
