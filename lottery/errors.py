"""What went wrong, in one line: the input, the machine, or (None) a defect of ours."""

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
    """Something that the user gave cannot be used. The one line names it, its value, and the way out. Exit code 2."""


class MachineError(RuntimeError):
    """The machine, a disk or a server failed, not the user: one line, exit code 1."""


def known_failure(e: Exception) -> tuple[str, int] | None:
    """(one line, exit code) for what is wrong with the input or with the machine; None for a defect of ours."""
    if isinstance(e, click.MissingParameter) and isinstance(e.param, click.Option):
        return f"{e.format_message()} {e.param.help}", 2
    if isinstance(e, click.ClickException):
        return e.format_message(), e.exit_code
    if isinstance(e, InputError):
        return str(e), 2
    if isinstance(e, OSError):
        where = f"{e.filename}: " if e.filename else ""
        return f"{where}{e.strerror or e}", 2 if e.errno in USER_ERRNO and e.filename else 1
    if isinstance(e, MachineError):
        return str(e), 1
    # Classes of libraries that are only there if they were needed; they are not imported for this.
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
    """Whether memory was exhausted, the machine's or a GPU's."""
    torch = sys.modules.get("torch")
    if isinstance(e, MemoryError) or (torch and isinstance(e, torch.OutOfMemoryError)):
        return True
    # where torch has no class for it
    said = ("can't allocate memory", "Cannot allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(e, RuntimeError) and any(words in str(e) for words in said)


def is_gpu_out_of_memory(e: Exception) -> bool:
    torch = sys.modules.get("torch")
    return bool(torch and isinstance(e, torch.OutOfMemoryError)) or "CUDA" in str(e) or "CUBLAS" in str(e)


def is_gpu_error(e: Exception) -> bool:
    """Whether CUDA or a library of it failed."""
    torch = sys.modules.get("torch")
    if torch and isinstance(e, torch.AcceleratorError):
        return True
    return isinstance(e, RuntimeError) and str(e).startswith(GPU_SAYS)


def path_error(e: OSError, line: str) -> InputError | MachineError:
    """A full or broken disk is the machine's fault, anything else about a path that of who gave it."""
    broken = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENOMEM)
    return MachineError(line) if broken else InputError(line)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known words, near ones alone where there are some: the way out of an unknown word."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5) if len(known) > 4 else []
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def hide_password(text: str) -> str:
    """A URI, or a text with URIs in it, without user and password: up to the last @, as a password may hold one."""
    text = re.sub(r"\b(?!sqlite:|file:)([a-z][a-z0-9+.-]*)://\S*@", r"\1://***@", text)
    return re.sub(r"\b(password|passwd|pwd|token)=[^&\s]+", r"\1=***", text, flags=re.IGNORECASE)
