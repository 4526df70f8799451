"""Rate limits: so many units a minute, evenly spread."""

import asyncio


class Pace:
    """`await wait(units)` returns when these units may be used. None sets no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_a_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def wait(self, units: float = 1) -> None:
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + units * self._seconds_a_unit
        if start > now:
            await asyncio.sleep(start - now)
