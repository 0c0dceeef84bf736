"""How often a test repeats what it draws at random: a floor by default, the whole of it with LOTTERY_SLOW=1, and in CI unless
LOTTERY_SLOW=0 says that the machine is too slow for it."""

import os

from tests.support.servers import IN_CI

SLOW_TOO = (os.environ.get("LOTTERY_SLOW") or str(int(IN_CI))) != "0"


def repeats(floor: int, whole: int) -> int:
    return whole if SLOW_TOO else floor
