"""The two errors of lottery, and the functions that turn any exception into the one line that a person reads."""

import difflib
import errno
import re
import sys
from collections.abc import Iterable

import click

USER_ERRNO = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
GPU_SAYS = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")


class InputError(ValueError):
    """The user gave something that cannot be used. The message is one line: parameter, value, way out. Exit code 2."""


class MachineError(RuntimeError):
    """The machine, a disk or a server failed; the user did nothing wrong. The message is one line. Exit code 1."""


def known_failure(e: Exception) -> tuple[str, int] | None:
    """Returns (one line, exit code) when the input or the machine is at fault, and None when lottery has a defect."""
    if isinstance(e, click.MissingParameter) and isinstance(e.param, click.Option):
        return f"{e.format_message()} {e.param.help}", 2
    if isinstance(e, click.ClickException):
        return e.format_message(), e.exit_code
    if isinstance(e, InputError):
        return str(e), 2
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) and not e.filename:
        return (
            f"{e.strerror}; make room where LOTTERY_HOME, the working folder and the temporary folder (TMPDIR) lie",
            1,
        )
    if isinstance(e, OSError):
        where = f"{e.filename}: " if e.filename else ""
        return f"{where}{e.strerror or e}", 2 if e.errno in USER_ERRNO and e.filename else 1
    if isinstance(e, MachineError):
        return str(e), 1
    # An error of MLflow or torch can only occur when the library is imported already, so it is not imported here.
    mlflow = sys.modules.get("mlflow")
    if mlflow and isinstance(e, mlflow.exceptions.MlflowException):
        return f"MLflow: {hide_password(' '.join(str(e).split()))[:300]}", 1
    if is_out_of_memory(e):
        elsewhere = "device=cpu, " if is_gpu_out_of_memory(e) else ""
        return f"out of memory; give a smaller window, runtime=packed, {elsewhere}or measure=none", 1
    if is_gpu_error(e):
        return f"the GPU failed ({' '.join(str(e).split())[:200]}); see lottery doctor, or give device=cpu", 1
    return None


def is_out_of_memory(e: Exception) -> bool:
    """Returns whether the memory of the machine or of a GPU was exhausted."""
    torch = sys.modules.get("torch")
    if isinstance(e, MemoryError) or (torch and isinstance(e, torch.OutOfMemoryError)):
        return True
    # In these cases torch raises a plain RuntimeError, so only its text tells.
    messages = ("can't allocate memory", "Cannot allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(e, RuntimeError) and any(message in str(e) for message in messages)


def is_gpu_out_of_memory(e: Exception) -> bool:
    """Returns whether it was a GPU's memory, for an error that `is_out_of_memory` recognizes."""
    torch = sys.modules.get("torch")
    return bool(torch and isinstance(e, torch.OutOfMemoryError)) or "CUDA" in str(e) or "CUBLAS" in str(e)


def is_gpu_error(e: Exception) -> bool:
    """Returns whether CUDA or one of its libraries failed."""
    torch = sys.modules.get("torch")
    if torch and isinstance(e, torch.AcceleratorError):
        return True
    return isinstance(e, RuntimeError) and str(e).startswith(GPU_SAYS)


def path_error(e: OSError, line: str) -> InputError | MachineError:
    """Returns the error to raise with this line: MachineError for a full or broken disk, InputError for any other path
    that cannot be used."""
    broken = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENOMEM)
    return MachineError(line) if broken else InputError(line)


def without_subject(e: Exception) -> str:
    """Returns the line of an error without the model that it begins with, for a line about another parameter."""
    return re.sub(r"^model(=.*?)?: ", "", str(e))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns the way out for an unknown word: the known words that resemble it, or else all known words."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5) if len(known) > 4 else []
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def hide_password(text: str) -> str:
    """Returns a URI, or a text that holds URIs, with `***` in place of user and password.

    Everything up to the last @ is replaced, because a password may contain an @ itself.
    """
    text = re.sub(r"\b(?!sqlite:|file:)([a-z][a-z0-9+.-]*)://\S*@", r"\1://***@", text)
    return re.sub(r"\b(password|passwd|pwd|token)=[^&\s]+", r"\1=***", text, flags=re.IGNORECASE)
