"""What a run says of the machine that its speeds were measured on, and of the kernel, through the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow

from lottery.kernels import product
from lottery.measuring.hardware import kernel_of, machine_of, with_kernel
from lottery.models import devices
from tests.support.studies import runs, write

HOW = ("--dataset", "builtin", "--limit", 2, "--register", "none", "--out", "none", "--device", "cpu")


def test_a_name_of_hardware_comes_apart_again() -> None:
    assert with_kernel("AMD EPYC, 2 threads", "avx512") == "AMD EPYC, 2 threads, kernel avx512"
    for machine, kernel in (("AMD EPYC, 2 threads", "avx2"), ("Arm, Neoverse, 8 threads", "plain")):
        name = with_kernel(machine, kernel)
        assert (machine_of(name), kernel_of(name)) == (machine, kernel)
    assert machine_of("NVIDIA H100") == "NVIDIA H100" and kernel_of("NVIDIA H100") == ""  # as all runs were before


def test_speeds_of_another_kernel_are_measured_anew(
    tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], force: Callable[[str], None]
) -> None:
    path = write(tmp_path, "kernels", models=[str(tiny)], target="mlp", sparsity=0.52)

    def ticket(*how: Any) -> tuple[str, str]:
        """(whether it was made or found, the hardware of its run)"""
        (row,) = [r for r in lottery_json("study", path, *HOW, *how)["tickets"] if r["title"] != "dense"]
        return row["state"], mlflow.get_run(row["run_id"]).data.tags["hardware"]

    machine = devices.hardware("cpu")
    sparse = ("--measure", "perplexity,memory", "--runtime", "sparse")
    assert ticket("--measure", "memory") == ("made", machine)  # as it was before there were kernels
    fastest = product.pick_kernel()
    assert ticket(*sparse) == ("made", f"{machine}, kernel {fastest}")
    assert ticket(*sparse) == ("found", f"{machine}, kernel {fastest}")
    force("plain")
    assert ticket(*sparse) == ("made" if fastest != "plain" else "found", f"{machine}, kernel plain")
    # torch multiplies the dense model.
    dense = [r for r in runs("tags.kind = 'dense'") if r.data.params.get("runtime") == "sparse"]
    assert dense and {r.data.tags["hardware"] for r in dense} == {machine}
