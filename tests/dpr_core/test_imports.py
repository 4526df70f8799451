import pkgutil
import subprocess
import sys
from pathlib import Path

import dpr_core

ROOT = Path(dpr_core.__file__).parents[1]

READ_CHECKPOINTS = {
    "dpr_core.models.checkpoints",
    "dpr_core.models.gguf_files",
    "dpr_core.models.imported",
    "dpr_core.lab.backbone",
    "dpr_core.training.lab_backbone",
}
"""What cannot do without transformers, whose models take seconds to import."""


def test_the_library_imports_without_transformers_and_accelerate() -> None:
    modules = {found.name for found in pkgutil.walk_packages([str(ROOT / "dpr_core")], "dpr_core.")}
    assert modules > READ_CHECKPOINTS
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'transformers', 'accelerate', 'peft', 'datasets', 'prefect', 'mlflow'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    names = sorted(modules - READ_CHECKPOINTS)
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
