"""Dense-Path REINFORCE as a library: the method, without any orchestration.

The names of `__all__` are its public ones (docs/library.md). They are loaded when they are first used: torch takes
seconds to import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpr_core.errors import UsageError
    from dpr_core.library import DenseReward
    from dpr_core.models.dense_reward import ScoredText, TokenCredit

__all__ = ["DenseReward", "ScoredText", "TokenCredit", "UsageError"]
__version__ = "0.1.0"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from dpr_core import library

        return getattr(library, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
