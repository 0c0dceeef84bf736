"""A GGUF file becomes a model folder: the file is checked, dequantized, and written with its provenance."""

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lottery import __version__
from lottery.errors import InputError, MachineError, is_out_of_memory, path_error
from lottery.files.atomic import atomic_folder, atomic_write
from lottery.files.hashes import file_sha256
from lottery.files.home import printable, resolve_path
from lottery.models.gguf import FLOATS, PROVENANCE, GgufHeader, bits_per_weight, is_gguf, quantized_types
from lottery.models.gguf_parts import assemble, find_parts
from lottery.models.hub import CARD
from lottery.registry.cards import escape_markdown
from lottery.runtime.gguf import convert

SMALL_FILES_BYTES = 100 * 10**6  # more than tokenizer and config take


def import_gguf(files: Sequence[str | Path], to: str | Path) -> dict[str, Any]:
    """Writes the model of a GGUF file, which may be in parts, into the new folder `to`. Returns what `--json` prints.

    Raises InputError, naming the parameter `file` or `dir`, for a file that is damaged, unknown or too large for the
    memory, and for a folder that exists or cannot be written; MachineError for a full disk. Nothing is left then.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"file={files[0]}: to read it the package gguf is needed; run `pip install 'lottery[gguf]'`")
    dest = resolve_path(to, "dir")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise taken(dest)
    parts = find_parts([resolve_path(file, "file") for file in files])
    with atomic_folder(dest, "dir") as folder:
        if folder is None:
            raise taken(dest)
        with explain_errors(dest, parts):
            work = folder / "work"
            work.mkdir()
            check_room(dest, parts, 0)
            header = assemble(parts, work / "model.gguf")
            check_room(dest, [], sum(tensor.numel for tensor in header.tensors))
            converted = convert(work / "model.gguf", header, folder)
            about = describe(header, parts, work / "model.gguf")
            shutil.rmtree(work)
            atomic_write(folder / PROVENANCE, (json.dumps(about, indent=2) + "\n").encode())
            atomic_write(folder / CARD, card(about).encode())
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = {"path": str(dest), "model_type": converted.model_type, "parameters": converted.parameters}
    return found | {"disk_bytes": size, "notes": converted.notes, **about}


@contextmanager
def explain_errors(dest: Path, parts: Sequence[Path]) -> Iterator[None]:
    """Turns the failures of disk and memory into errors of one line."""
    try:
        yield
    except OSError as e:
        if e.filename and Path(e.filename) in parts:
            raise path_error(e, f"file={e.filename}: it cannot be read ({e.strerror}); give another copy of it") from e
        raise path_error(e, f"dir={dest}: {e.strerror}; make room, or give another folder") from e
    except SafetensorError as e:  # it has no error of its own for a full disk
        raise MachineError(f"dir={dest}: the weights cannot be written ({e}); make room, or give another folder") from e
    except Exception as e:  # exhausted memory has many classes; anything else is raised again
        if is_out_of_memory(e):
            raise MachineError(f"file={parts[0]}: the memory is exhausted; use a machine with more of it") from e
        raise


def taken(dest: Path) -> InputError:
    """Returns the error for a destination that exists already."""
    return InputError(f"dir={dest}: {'it is not empty' if dest.is_dir() else 'it is a file'}; give a new folder")


def check_room(dest: Path, parts: Sequence[Path], weights: int) -> None:
    """Raises MachineError unless the disk has room for `weights` in 16 bits, and for the one file that parts become."""
    need = 2 * weights + SMALL_FILES_BYTES + (sum(path.stat().st_size for path in parts) if len(parts) > 1 else 0)
    if need > (free := shutil.disk_usage(dest.parent).free):
        raise MachineError(
            f"dir={dest}: the import takes {need:,} bytes, the disk has {free:,} free; make room, or give another folder"
        )


def describe(header: GgufHeader, parts: Sequence[Path], whole: Path) -> dict[str, Any]:
    """Returns what provenance.json holds: the files, the types of their tensors, and what was done to the weights."""
    types: dict[str, dict[str, int]] = {}
    for tensor in header.tensors:
        entry = types.setdefault(tensor.type, {"tensors": 0, "weights": 0})
        entry["tensors"] += 1
        entry["weights"] += tensor.numel
    source: dict[str, Any] = {"files": {path.name: file_sha256(path) for path in parts}}
    if len(parts) > 1 and not all(is_gguf(path) for path in parts):
        source["sha256"] = file_sha256(whole)  # of the published file, whose pieces were given
    named = {key: header.values.get(f"general.{key}") for key in ("name", "license", "architecture")}
    return {
        "source": source,
        **{key: one_line(value) for key, value in named.items() if isinstance(value, str)},
        "types": types,
        "bits_per_weight": bits_per_weight(header.tensors),
        "weights": describe_weights(header),
        "made_by": {"lottery": __version__} | {name: metadata.version(name) for name in ("transformers", "gguf")},
    }


def describe_weights(header: GgufHeader) -> str:
    """Returns the note on the weights, in one line."""
    quantized, bits = quantized_types(header.tensors), bits_per_weight(header.tensors)
    if quantized:
        return (
            f"dequantized from {bits:.2f} bits per weight ({', '.join(quantized)}) and rounded to bfloat16: "
            f"not the weights that the model had before it was quantized"
        )
    types = [name for name in FLOATS if any(t.type == name for t in header.tensors)]
    return f"rounded to bfloat16 from {' and '.join(types)}; they were not quantized"


def card(about: dict[str, Any]) -> str:
    """Returns the README.md of the folder, with the header that the Hugging Face hub reads."""
    header = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    header |= {"license": about["license"]} if "license" in about else {}
    files = [f"- {escape_markdown(name)}, sha256 `{sha256}`" for name, sha256 in about["source"]["files"].items()]
    types = [f"- {name}: {of['tensors']} tensors, {of['weights']:,} weights" for name, of in about["types"].items()]
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""]
    lines += [f"# {escape_markdown(about.get('name', 'A model'))}", ""]
    lines += [f"`lottery import` made this folder of a GGUF file. Its weights are {about['weights']}.", "", *files]
    return "\n".join([*lines, "", "The tensors of the file were of these types:", "", *types, ""])


def one_line(text: str) -> str:
    """Returns a text from a file as one line of at most 200 characters that can be printed."""
    return " ".join(printable(text).split())[:200]
