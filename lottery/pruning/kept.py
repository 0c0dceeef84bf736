"""Keeps what dense blocks gave on disk, so that another sparsity, method or pattern needs no pass of the samples.

A folder of LOTTERY_HOME/grams holds the sums over 32 samples: for each input of a block the upper triangle of its Gram
matrix, row by row, and the sums of squares. Sums of more samples are added from several folders. The name of a folder is
a hash of all that fixes the bits of a sum, the machine among it. A part of a folder is whole or not there, and its hash
is checked before it is used. Where the folders take more than 20 GB, those that were not used for the longest time go.

Legend: N samples, T tokens of a sample, I columns.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lottery.errors import InputError, MachineError
from lottery.files.atomic import atomic_folder, atomic_write
from lottery.files.hashes import file_sha256
from lottery.files.home import home, make_folder
from lottery.files.locks import try_process_lock
from lottery.files.reading import read_json
from lottery.models import devices
from lottery.models.checkpoint import Source
from lottery.progress import say
from lottery.pruning.statistics import Accumulator
from lottery.spec import json_sha256
from lottery.ticket.packing import Writer, as_bytes

SAMPLES = 32  # of a folder
LIMIT = 20 * 10**9  # bytes of all folders together
LOCK_S = 5.0  # how long a run waits for another one that makes room
NUMBERS = 2**20  # that are read at once
INDEX, LOCK = "index.json", ".lock"
SPARE = 5 * 10**9  # bytes that they leave free on the disk
Key = tuple[str, int | None, bool]  # of a matrix: module, expert, whether the input is the expert's inner one


@dataclass(frozen=True)
class Input:
    """Where the sums of one input lie: the part of a folder, its number there, and the matrices that get this input."""

    folder: Path
    number: int
    columns: int
    tokens: int
    keys: tuple[Key, ...]


class KeptSums:
    """The sums of one run: of its model and samples, on its device."""

    def __init__(self, source: Source, ids_NT: torch.Tensor, dtype: torch.dtype, device: str, with_gram: bool) -> None:
        about = {
            "base": source.base_record["files"],
            "ticket": file_sha256(source.folder / "ticket.json") if source.ticket else None,
            "dtype": str(dtype),
            "machine": devices.hardware(device),
            "versions": [version(name) for name in ("torch", "transformers", "numpy", "scipy")],
        }
        self.with_gram, self.device = with_gram, device
        self.folders = [
            home()
            / "grams"
            / json_sha256({**about, "samples": hashlib.sha256(ids_nT.numpy().tobytes()).hexdigest()})[:16]
            for ids_nT in ids_NT.split(SAMPLES)
        ]
        self.writes = True
        self.made: list[Path] = []
        self.held: set[Path] = set()
        self.in_use = ExitStack()  # as long as this lives, no other process removes the folders
        for folder in self.folders:
            self._hold(folder)
        self.found: dict[str, list[list[Input]]] = {}  # of each part that is whole, what each folder holds of it

    def _hold(self, folder: Path) -> None:
        if folder.is_dir() and folder not in self.held:
            self.held.add(folder)
            with suppress(OSError):  # a file system without locks, or a folder of somebody else
                file = self.in_use.enter_context(open(folder / LOCK, "a+"))  # noqa: SIM115  # the stack closes it
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def holds(self, part: str, keys: Collection[Key]) -> bool:
        """Returns whether the sums of all these matrices of a part, a block or the head, are here and undamaged."""
        each = [list(self._inputs(folder, part, keys)) for folder in self.folders]
        if any({key for one in inputs for key in one.keys} != set(keys) for inputs in each):
            return False
        self.found[part] = each
        return True

    def _inputs(self, folder: Path, part: str, keys: Collection[Key]) -> Iterator[Input]:
        """Yields what a folder holds of some matrices, each matrix once."""
        left = set(keys)
        for kind in ("grams",) if self.with_gram else ("norms", "grams"):
            for place in sorted(folder.glob(f"{part}-{kind}-*")):
                index = self._index(place) if left else {}
                for number, about in enumerate(index.get("inputs", [])):
                    here = tuple(key for key in map(as_key, about["keys"]) if key in left)
                    left -= set(here)
                    if here:
                        yield Input(place, number, about["columns"], about["tokens"], here)

    def _index(self, place: Path) -> dict[str, Any]:
        """Returns what a part's index says, {} where the part is damaged; it is then removed."""
        with suppress(OSError):
            os.utime(place.parent)  # it was used now
        try:
            index = read_json(place / INDEX)
            sound = index.pop("digest", None) == json_sha256(index)
            if sound and all(file_sha256(place / name) == sha256 for name, sha256 in index["files"].items()):
                return index
        except PermissionError:
            return {}
        except (InputError, OSError, KeyError, TypeError, AttributeError):
            pass
        say(f"the kept sums in {place} are damaged; they are made again")
        shutil.rmtree(place, ignore_errors=True)
        return {}

    def read(self, part: str) -> tuple[dict[Key, Accumulator], dict[Key, Key]]:
        """Returns the sums of a part that `holds` found: the accumulator of each input by the first matrix that gets it,
        and for each matrix that first one."""
        sums: dict[Key, Accumulator] = {}
        owner: dict[Key, Key] = {}
        for inputs in self.found.pop(part):
            added: set[Key] = set()  # one folder may hold an input twice, for different matrices
            for one in inputs:
                first = owner.get(one.keys[0], one.keys[0])
                owner |= dict.fromkeys(one.keys, first)
                if first in added:
                    continue
                added.add(first)
                try:
                    new = self._read_input(one)
                except (OSError, ValueError, SafetensorError) as e:
                    raise MachineError(
                        f"the kept sums in {one.folder} went away while they were read; run it again"
                    ) from e
                sums[first] = sums[first].merge(new) if first in sums else new
        return sums, owner

    def _read_input(self, one: Input) -> Accumulator:
        (file,) = one.folder.glob("*.safetensors")
        made = Accumulator(one.columns, self.with_gram, "cpu")
        made.tokens = one.tokens
        with safe_open(file, framework="np") as f:
            made.square_I = torch.from_numpy(f.get_tensor(f"{one.number}.squares"))
            if made.gram_II is not None:
                fill_triangle(made.gram_II.numpy(), f.get_slice(f"{one.number}.gram"))
        return made.to(self.device)

    def keep(
        self, part: str, chunk: int, sums: Mapping[Key, Accumulator], owner: Mapping[Key, Key], parts: int
    ) -> None:
        """Writes the sums of one chunk of samples. What cannot be kept is said once, and the run goes on without.

        `parts` is the number of blocks that are pruned; it tells whether all of them have room.
        """
        if not self.writes:
            return
        kind = "grams" if self.with_gram else "norms"
        keys = [[key for key, first in owner.items() if first == own] for own in sums]
        folder = self.folders[chunk]
        place = folder / f"{part}-{kind}-{json_sha256(keys)[:8]}"
        nbytes = sum(triangle_bytes(s) for s in sums.values())
        try:
            self._check_room(nbytes * parts * len(self.folders))
            with only_one():
                make_room(nbytes, self.folders)
            with atomic_folder(place, "LOTTERY_HOME") as fresh:
                if fresh is not None:
                    write_sums(fresh, list(sums.values()), keys)
                    self.made.append(place)
            self._hold(folder)
        except (OSError, InputError, MachineError) as e:
            self.writes = False
            for made in self.made:  # the ticket itself may need the room
                shutil.rmtree(made, ignore_errors=True)
            say(f"the sums of the calibration are not kept for later runs: {e}")

    def _check_room(self, nbytes: int) -> None:
        """Raises MachineError where all sums of this run have no room, in what they may take or on the disk."""
        if nbytes > LIMIT:
            raise MachineError(f"they would take more than {LIMIT / 1e9:g} GB")
        if not self.made and (free := shutil.disk_usage(make_folder(home(), "LOTTERY_HOME")).free) < nbytes + SPARE:
            raise MachineError(f"{home()} has {free / 1e9:.1f} GB left, and they would take {nbytes / 1e9:.1f}")


def as_key(given: Sequence[Any]) -> Key:
    module, expert, second = given
    return module, expert, second


def triangle_bytes(sums: Accumulator) -> int:
    columns = len(sums.square_I)
    return 4 * (columns + (triangle(columns) if sums.gram_II is not None else 0))


def triangle(columns: int) -> int:
    """Returns the number of entries of an upper triangle."""
    return columns * (columns + 1) // 2


def fill_triangle(gram_II: np.ndarray, packed: Any) -> None:
    """Fills the upper triangle of a matrix from its rows, which lie one after the other."""
    columns, at = len(gram_II), 0
    first = 0
    while first < columns:
        last, count = first, 0
        while last < columns and (count == 0 or count + columns - last <= NUMBERS):
            count += columns - last
            last += 1
        block, done = packed[at : at + count], 0
        for row in range(first, last):
            gram_II[row, row:] = block[done : done + columns - row]
            done += columns - row
        first, at = last, at + count


def write_sums(folder: Path, sums: Sequence[Accumulator], keys: Sequence[Sequence[Key]]) -> None:
    """Writes a safetensors file with `I.squares` and `I.gram` of every input, and an index, which comes last."""
    parts: list[tuple[str, str, Sequence[int]]] = []
    for i, one in enumerate(sums):
        columns = len(one.square_I)
        parts.append((f"{i}.squares", "F32", [columns]))
        if one.gram_II is not None:
            parts.append((f"{i}.gram", "F32", [triangle(columns)]))
    writer = Writer(folder, parts)
    try:
        for i, one in enumerate(sums):
            writer.add(f"{i}.squares", "F32", [len(one.square_I)], [as_bytes(one.square_I.cpu().numpy())])
            if one.gram_II is not None:
                gram_II = one.gram_II.cpu().numpy()
                rows = [as_bytes(gram_II[row, row:]) for row in range(len(gram_II))]
                writer.add(f"{i}.gram", "F32", [triangle(len(gram_II))], rows)
        names = writer.finish("sums")
    finally:
        writer.close()
    inputs = [
        {"keys": of, "columns": len(one.square_I), "tokens": one.tokens} for one, of in zip(sums, keys, strict=True)
    ]
    index = {"inputs": inputs, "files": {name: file_sha256(folder / name) for name in names}}
    atomic_write(folder / INDEX, json.dumps({**index, "digest": json_sha256(index)}).encode())


@contextmanager
def only_one() -> Iterator[None]:
    """Lets one process at a time make room. Raises MachineError where another one holds the lock for long."""
    until = time.monotonic() + LOCK_S
    while True:
        with try_process_lock("grams") as held:
            if held:
                yield
                return
        if time.monotonic() > until:
            raise MachineError("another process holds their lock")
        time.sleep(0.05)


def make_room(nbytes: int, mine: Sequence[Path]) -> None:
    """Removes folders of other runs, the one first that was not used for the longest time, until `nbytes` more fit."""
    sizes: dict[Path, int] = {}
    used: dict[Path, float] = {}
    for folder in (home() / "grams").glob("*"):
        with suppress(FileNotFoundError):  # another process renames a file
            used[folder] = folder.stat().st_mtime
            sizes[folder] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    for folder in sorted(sizes, key=lambda f: used[f]):
        if folder not in mine and sum(sizes.values()) + nbytes > LIMIT and remove_unused(folder):
            sizes[folder] = 0
    if sum(sizes.values()) + nbytes > LIMIT:
        raise MachineError(f"they would take more than {LIMIT / 1e9:g} GB")


def remove_unused(folder: Path) -> bool:
    """Removes a folder unless another process reads it. Returns whether it was removed."""
    try:
        with open(folder / LOCK, "a+") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            return True
    except OSError:
        return False
