"""What a training leaves on disk: one folder per training, named by the training's hash, complete or absent.

LOTTERY_HOME/trainings/ID/weights.safetensors   its last weights and its mask, as bits
                         /result.json           the record, the losses, the curve
                         /search.npy report.npy the loss of each window
LOTTERY_HOME/trainings/ID.states/40.safetensors the weights after 40 steps
LOTTERY_HOME/trainings/ID.unfinished/           the checkpoint that a killed training goes on from
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.files.atomic import atomic_folder, atomic_write
from lottery.files.hashes import file_sha256
from lottery.files.home import home, make_folder
from lottery.files.reading import read_json
from lottery.training.recipe import Setup, Training
from lottery.training.sealed import read_sealed, seal

WEIGHTS, RESULT = "weights.safetensors", "result.json"


@dataclass(frozen=True)
class End:
    """The last weights of a training, float32 [P], and its mask, bool [P]."""

    weight_P: np.ndarray
    mask_P: np.ndarray


class Writing:
    """The folder of a training that has ended, while it is filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def end(self) -> End:
        """Returns what was written, as it is read back: this is what is measured."""
        return end_of(read_tensors(self.folder / WEIGHTS))

    def nll(self, part: str, nll_N: np.ndarray) -> None:
        np.save(self.folder / f"{part}.npy", nll_N, allow_pickle=False)

    def result(self, result: Mapping[str, Any]) -> None:
        """Writes the result, last, with the hashes of the other files."""
        hashes = {path.name: file_sha256(path) for path in sorted(self.folder.iterdir())}
        (self.folder / RESULT).write_text(json.dumps({**result, "files": hashes}, indent=1) + "\n")


class Outputs:
    """Reads and writes the outputs of the trainings of one setup."""

    def __init__(self, setup: Setup, folder: Path | None = None) -> None:
        self.setup, self.folder = setup, folder or home() / "trainings"

    def path(self, training: Training) -> Path:
        return self.folder / training.id(self.setup)

    def state_path(self, training: Training, step: int) -> Path:
        folder = self.path(training)
        return folder.with_name(f"{folder.name}.states") / f"{step}.safetensors"

    def line_path(self, a: Training, b: Training) -> Path:
        """Returns the file of the losses on the line between the ends of two trainings."""
        return self.folder / f"{a.id(self.setup)}-{b.id(self.setup)}.line.safetensors"

    def unfinished(self, training: Training) -> Path:
        """Returns the folder of a checkpoint, and makes it."""
        folder = self.path(training)
        return make_folder(folder.with_name(f"{folder.name}.unfinished"), "LOTTERY_HOME")

    def has(self, training: Training, step: int | None = None) -> bool:
        """Returns whether a training has ended, or whether its weights after `step` steps are there."""
        return (self.path(training) / RESULT if step is None else self.state_path(training, step)).exists()

    def has_diverged(self, training: Training) -> bool:
        """Returns whether a training has ended because its loss was no number."""
        return self.has(training) and self.result(training)["outcome"] == "diverged"

    def write_state(self, training: Training, step: int, weight_P: np.ndarray) -> None:
        path = self.state_path(training, step)
        make_folder(path.parent, "LOTTERY_HOME")
        atomic_write(path, seal({"weights": weight_P}))

    def read_state(self, training: Training, step: int) -> np.ndarray:
        """Returns the weights after `step` steps, float32 [P]. Raises InputError if the file was altered."""
        return read_tensors(self.state_path(training, step))["weights"]

    @contextmanager
    def writing(self, training: Training, end: End) -> Iterator["Writing"]:
        """Writes what a training has left: its weights now, the rest within the block. The folder comes into being when
        the block ends, and the checkpoint is deleted then."""
        with atomic_folder(self.path(training), "LOTTERY_HOME") as folder:
            assert folder is not None, "a lock lets one process make a training"
            tensors = {"weights": end.weight_P, "mask": np.packbits(end.mask_P)}
            (folder / WEIGHTS).write_bytes(seal(tensors))
            yield Writing(folder)
        shutil.rmtree(self.unfinished(training), ignore_errors=True)

    def write_line(self, a: Training, b: Training, line_AN: np.ndarray) -> None:
        make_folder(self.folder, "LOTTERY_HOME")
        atomic_write(self.line_path(a, b), seal({"losses": line_AN}))

    def read_line(self, a: Training, b: Training) -> np.ndarray:
        """Returns the loss of each search window at each point of the line, float64 [A, N]. Raises InputError if the
        file was altered."""
        return read_tensors(self.line_path(a, b))["losses"]

    def result(self, training: Training) -> dict[str, Any]:
        """Returns the result of a training that has ended. Raises InputError if it is not what was written."""
        folder = self.path(training)
        try:
            found = read_json(folder / RESULT)
        except InputError as e:
            raise InputError(f"{e}; delete {folder}, and it is made again") from e
        if found.get("id") != folder.name or "files" not in found:
            raise InputError(
                f"{folder / RESULT}: it is not that of this training; delete {folder}, and it is made again"
            )
        return found

    def read_end(self, training: Training) -> End:
        """Returns the last weights and the mask. Raises InputError if the file was altered."""
        return end_of(read_tensors(self.checked(training, WEIGHTS), self.path(training)))

    def read_nll(self, training: Training, part: str) -> np.ndarray:
        """Returns the loss of each window of `search` or `report`, float64 [N]."""
        return np.asarray(np.load(self.checked(training, f"{part}.npy"), allow_pickle=False))

    def checked(self, training: Training, name: str) -> Path:
        """Returns the path of a file whose hash is the recorded one. Raises InputError if it is not."""
        path = self.path(training) / name
        if not path.exists() or file_sha256(path) != self.result(training)["files"].get(name):
            raise InputError(
                f"{path}: it is not the file that the training left; delete {path.parent}, and it is made again"
            )
        return path


def end_of(tensors: Mapping[str, np.ndarray]) -> End:
    weight_P = tensors["weights"]
    return End(weight_P, np.unpackbits(tensors["mask"], count=len(weight_P)).astype(bool))


def read_tensors(path: Path, remedy: Path | None = None) -> dict[str, np.ndarray]:
    """Returns the tensors of a file. Raises InputError if it cannot be read or was altered; it tells to delete the file, or
    `remedy`."""
    try:
        return read_sealed(path).tensors
    except InputError as e:
        raise InputError(f"{e}; delete {remedy or path}, and it is made again") from e
