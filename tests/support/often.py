"""How often a test repeats what it draws at random: a floor by default, the whole of it in CI and with LOTTERY_SLOW=1."""

import os

from tests.support.servers import IN_CI

SLOW_TOO = IN_CI or os.environ.get("LOTTERY_SLOW", "0") not in ("", "0")


def repeats(floor: int, whole: int) -> int:
    return whole if SLOW_TOO else floor
