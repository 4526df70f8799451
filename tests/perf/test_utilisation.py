import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.models.policy import Policy
from dpr_core.planning.architecture import Architecture, architecture_from_config
from dpr_core.planning.hours import GPUS, StageWork
from perf.device_limits import Limits, known
from perf.sizes import LARGE, SIZES, large_network, network, ragged
from perf.utilisation import TASKS, UtilisationBench, bytes_read, fitting, main, measured, read_once, trained

CPU = torch.device("cpu")
NANO = Architecture("llama", 512, 32, 2, 4, 2, 16, 48, 4096, False)


def multiplied(policy: Policy, sequences: list[TokenSequence], learning: bool) -> float:
    """By torch's own count. Eager attention, which alone multiplies batches of matrices, takes all pairs of tokens, of
    which a causal one needs half. The head's gradient is added up in place, which torch does not count by itself."""
    policy.model.set_attn_implementation("eager")
    in_place = {torch.ops.aten.addmm_: lambda added_to, left, right, **_: 2 * math.prod(left) * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.set_grad_enabled(learning):
        for sequence in sequences:
            log_probs = policy(collate([sequence])).log_probs
            if learning:
                log_probs.sum().backward()
    found = counter.get_flop_counts()["Global"]
    return sum(found.values()) - found[torch.ops.aten.bmm] / 2


@pytest.mark.parametrize("size", ["toy", pytest.param("v32k", marks=pytest.mark.slow)])
def test_the_operations_are_those_that_torch_counts(size: str) -> None:
    policy, sequences = Policy(network(size), packing=False), ragged(3, size)
    architecture = architecture_from_config(policy.model.config)
    assert multiplied(policy, sequences, learning=False) == read_once(architecture, sequences).operations
    assert multiplied(policy, sequences, learning=True) == trained(architecture, sequences, adapters=False).operations


def test_the_bytes_are_those_of_rows_that_are_never_idle() -> None:
    lengths, rows = ((3, 2), (5, 4), (2, 2)), 2
    sequences = [TokenSequence((7,) * prompt, (8,) * response) for prompt, response in lengths]
    # Rows of 4 and of 2 + 2 tokens: four passes. A response's later tokens see those before them.
    weights = 4 * (2 * 2 * NANO.layer_matrices + 4 * 512 * 32)
    seen = [4, 6, 7, 8, 3]
    keys_and_values = sum(2 * 2 * NANO.layers * NANO.keys * tokens for tokens in seen)
    assert bytes_read(NANO, sequences, rows, number=2, head=4) == weights + keys_and_values
    # With a row for each, the longest response says how many.
    assert bytes_read(NANO, sequences, 3, 2, 4) == bytes_read(NANO, sequences, 2, 2, 4)
    assert bytes_read(NANO, sequences, 1, 2, 4) == 2 * weights + keys_and_values


def test_shares_of_the_limits() -> None:
    limits = Limits(operations=100, head=10, read=50)
    least = StageWork(body=60, head=20)
    assert limits.share(least, 4) == pytest.approx(0.2)
    # 0.6 seconds for the body, 2 for the head, in which 260 operations would have been possible.
    assert limits.at_most(least) == pytest.approx(80 / 260)
    drawn = StageWork(body=60, head=20, read=25)
    assert limits.share(drawn, 2) == pytest.approx(0.25)
    assert limits.at_most(drawn) is None


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "4090"),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, gpu: str) -> None:
    assert known(name) is GPUS[gpu]


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA H200 MIG 1g.18gb", "NVIDIA H100 NVL", "Tesla T4"])
def test_a_gpu_with_other_peaks_is_not(name: str) -> None:
    assert known(name) is None


def test_what_is_trained_is_what_fits() -> None:
    sequences = ragged(4, "toy", prompts=(256, 256), responses=(1024, 1024))
    found = {
        (size, gpu): fitting(LARGE[size], torch.bfloat16, sequences, GPUS[gpu].usable)
        for size in LARGE
        for gpu in ("h200", "h100", "l4")
        if (size, gpu) != ("8b", "l4")
    }
    assert found == {
        ("1b", "h200"): "all weights",
        ("1b", "h100"): "all weights",
        ("1b", "l4"): "adapters",
        ("8b", "h200"): "adapters",
        ("8b", "h100"): "adapters, activations computed again",
    }
    with pytest.raises(DensePathError, match="does not fit"):
        fitting(LARGE["8b"], torch.bfloat16, sequences, GPUS["l4"].usable)


def test_a_large_network_has_the_shape_that_it_is_planned_with() -> None:
    assert [round(LARGE[size].parameters / 1e9, 2) for size in LARGE] == [1.24, 8.03]
    for architecture in LARGE.values():
        assert architecture_from_config(large_network_on("meta", architecture).config) == architecture


def large_network_on(device: str, architecture: Architecture) -> torch.nn.Module:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(LARGE, "nano", architecture)
        model = large_network("nano", torch.device(device))
    assert sum(p.numel() for p in model.parameters()) == architecture.parameters
    return model


@pytest.mark.slow
@pytest.mark.parametrize("way", ["all weights", "adapters, activations computed again"])
def test_large_networks_are_measured_as_on_a_gpu(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGE, "nano", NANO)
    monkeypatch.setattr("perf.utilisation.LONG", ((4, 8), (3, 5)))
    monkeypatch.setattr("perf.utilisation.fitting", lambda *_: way)
    limits = Limits(operations=1e12, head=1e11, read=1e10)
    bench = UtilisationBench("nano", CPU, torch.bfloat16, count=1, rows=1)
    rows = {name: measured(name, bench, limits, limits, repeats=1) for name in TASKS}
    assert rows["sft"]["how"] == rows["update"]["how"] == way
    assert all(0 < row["utilisation"] == row["of_makers_peak"] for row in rows.values())
    assert all(0 < rows[name]["at_most"] < 1 for name in ("sft", "score", "update"))


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise DensePathError("training does not fit")

    monkeypatch.setattr("perf.utilisation.fitting", full)
    bench, limits = UtilisationBench("toy", CPU, torch.float32, 1, 1), Limits(1, 1, 1)
    row = measured("sft", bench, limits, None, 1)
    assert row == {"case": "toy", "work": "sft", "how": "not measured: training does not fit"}


@pytest.mark.slow
def test_the_shares_of_a_toy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["utilisation.py", "--sizes", "toy", "--sequences", "4", "--rows", "2", "--repeats", "2", "--json"]
    monkeypatch.setattr("sys.argv", words)
    main()
    results = json.loads(capsys.readouterr().out)
    rows = {row["work"]: row for row in results["rows"]}
    assert results["ratios"] == {f"utilisation_{name}_toy": rows[name]["utilisation"] for name in TASKS}
    limits = {row["limit"]: row["measured"] for row in results["limits"]}
    in_products = next(iter(limits.values()))
    for name in ("sft", "score", "update"):
        assert 0 < rows[name]["utilisation"] == pytest.approx(rows[name]["teraflops"] / in_products)
    drawn = rows["rollout"]
    assert 0 < drawn["utilisation"] == pytest.approx(drawn["gigabytes_per_second"] / limits["gigabytes a second"])
    tokens = sum(map(len, ragged(4, "toy")))
    assert rows["sft"]["tokens_per_second"] == pytest.approx(tokens / (sum(rows["sft"]["seconds"]) / 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_large_sizes_need_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["utilisation.py", "--sizes", "1b"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "1b and 8b need a GPU" in capsys.readouterr().err
    assert not set(LARGE) & set(SIZES)
