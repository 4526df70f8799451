"""What could run code that comes with data is not in this project at all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "tarfile", "zipfile"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "pandas.read_pickle", "numpy.load", "shutil.unpack_archive",
}  # fmt: skip


READ_BY_HASH = {"dpr_core/models/packaged.py": ["zipfile"]}
"""One member of a wheel whose SHA-256 is pinned is read as a stream; nothing is unpacked."""


def forbidden(source: str) -> list[str]:
    """Imports, calls and arguments by which data could be run, or could write where it likes."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                found.append(ast.unparse(node.func))
            for argument in node.keywords:
                value = ast.unparse(argument.value)
                if (argument.arg, value) in {("shell", "True"), ("allow_pickle", "True"), ("weights_only", "False")}:
                    found.append(f"{argument.arg}={value}")
                if argument.arg == "trust_remote_code" and value != "False":
                    found.append(f"trust_remote_code={value}")
    return found


@pytest.mark.parametrize("package", ["dpr_core", "tasks", "flows"])
def test_nothing_is_unpickled_unpacked_or_evaluated(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): names for file in files if (names := forbidden(file.read_text("utf-8")))}
    assert found == {file: names for file, names in READ_BY_HASH.items() if file.startswith(package)}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from zipfile import ZipFile",
        "def f():\n    import torch\n    return torch.load(path, weights_only=False)",
        "x = eval(text)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trusted)",
        "load_dataset(name, trust_remote_code=True)",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert forbidden(source) != []
    assert forbidden("model.eval(); re.compile(x); yaml.safe_load(x); f(trust_remote_code=False)") == []
