import gc
import sys
from pathlib import Path

import pytest

from tasks.libraries import load


def test_nothing_is_collected_while_a_library_is_imported_nor_is_it_looked_through_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large_library.py").write_text("import gc\nCOLLECTED = gc.isenabled()\n")
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    frozen: list[None] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    load("large_library")
    load("large_library")
    assert (sys.modules.pop("large_library").COLLECTED, len(frozen), gc.isenabled()) == (False, 1, True)
    with pytest.raises(RuntimeError, match="broken"):
        load("broken_library")
    assert (len(frozen), gc.isenabled()) == (1, True)
