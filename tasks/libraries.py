"""Imports of large libraries, which the garbage collector leaves alone then and later (`gc.freeze`)."""

import gc
import importlib
import sys


def load(*modules: str) -> None:
    """Import what is not imported yet. The hundreds of thousands of objects that come of it stay as long as the
    process: to look through them for garbage, while they are made, now and then, and at its end, takes as long again
    as half of the import."""
    if all(name in sys.modules for name in modules):
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        for name in modules:
            importlib.import_module(name)
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def load_torch() -> None:
    """Torch and transformers, as nearly every stage that computes needs them."""
    load("dpr_core.models.checkpoints")
