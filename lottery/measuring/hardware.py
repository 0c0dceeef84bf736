"""Names what speeds are measured on: the machine and, where one multiplies few tokens, the kernel. Needs no torch."""

KERNEL = ", kernel "  # stands between the two


def with_kernel(machine: str, kernel: str) -> str:
    """Returns the name under which speeds compare, "AMD EPYC, 2 threads, kernel avx512"."""
    return f"{machine}{KERNEL}{kernel}"


def machine_of(hardware: str) -> str:
    """Returns the machine's name, without the kernel."""
    return hardware.partition(KERNEL)[0]


def kernel_of(hardware: str) -> str:
    """Returns the kernel, "" where none is named."""
    return hardware.partition(KERNEL)[2]
