"""Early stopping replayed: what each guard would have done in good and in over-optimised REINFORCE runs, as Markdown.

    python perf/guards.py [REWARD_ID ...] --keep curves.json
    python perf/guards.py --from curves.json

Every run goes on to its end without a guard, and the accuracy on training prompts is measured before each update. A
guard reads logged signals only and changes nothing before it stops, so all guards are replayed on the same run. Reward
artifacts of the lab are looked up in DPR_HOME, where `dpr run demo` leaves one; without an ID it is the newest.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.config.data import LabSourceConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import GuardConfig, KLStopConfig, ReinforceConfig, WitnessStopConfig
from dpr_core.data.encoding import decode_response, end_token
from dpr_core.lab.programs import draw_problems, read_result
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.guard import GUARDS
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import optimizer_steps
from dpr_core.training.trainer import Trainer
from tasks.artifacts.store import Artifact, Store
from tasks.stages.lineage import Lineage

REGIMES: Mapping[str, tuple[str, float, float]] = {
    "DPR": ("baseline_relative", 5e-5, 0.1),
    "hardly any KL, large steps": ("baseline_relative", 2e-4, 1e-5),
    "w/V": ("with_value", 5e-5, 1e-5),
    "wo/Baseline": ("without_baseline", 5e-5, 0.1),
    "random signs": ("random_sign", 2e-4, 1e-5),
}
"""Formula of the reward, learning rate, KL weight."""

RULES: Mapping[str, GuardConfig | None] = {
    "none": None,
    "kl_stop 0.5": KLStopConfig(),
    "kl_stop 1": KLStopConfig(max_sequence_kl=1.0),
    "witness_stop": WitnessStopConfig(),
}

Curve = list[dict[str, float]]
"""What each rollout of a run shows, and the accuracy of the policy it was drawn from."""


def replay(settings: GuardConfig | None, curve: Curve) -> tuple[int, int | None]:
    """(iteration of the policy that comes out, iteration at which the run stops)."""
    if settings is None:
        return len(curve), None
    guard, kept = GUARDS[type(settings)](settings), 1
    for iteration, signals in enumerate(curve, start=1):
        verdict = guard.watch(signals)
        kept = iteration if verdict.keep else kept
        if verdict.stop:
            return kept, iteration
    return kept, None


class Curves(InMemoryRecorder):
    """Measures the accuracy of a policy each time that a rollout of it is reported."""

    def __init__(self, accuracy: Any) -> None:
        super().__init__()
        self.accuracy = accuracy
        self.curve: Curve = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if "rollout/kl" in values:
            self.curve.append({**values, "accuracy": self.accuracy()})


def train(lineage: Lineage, artifact: Artifact, regime: str, arguments: argparse.Namespace) -> Curve:
    """One run to its end."""
    formula, learning_rate, kl_weight = REGIMES[regime]
    execution, limit = ExecutionConfig(threads=1), arguments.max_response_tokens
    settings = ReinforceConfig.model_validate(
        {
            "algorithm": {"type": "reinforce_plus_plus", "kl_weight": kl_weight},
            "learning_rate": learning_rate,
            "rollout_batch_size": arguments.rollouts,
            "batch_size": arguments.rollouts // 4,
            "iterations": arguments.iterations,
            "max_response_tokens": limit,
            "seed": arguments.seed,
        }
    )
    tokenizer, renderer = lineage.tokenizer(artifact), lineage.renderer(artifact)
    end = end_token(tokenizer)
    rows = lineage.demonstrations(artifact)
    prompts = [renderer.prompt(tokenizer, row.prompt, row.system, row.history) for row in rows]
    policy = lineage.load(lineage.sft_folder(artifact), artifact, execution)
    engine = InProcessEngine(policy.model, activations=policy.activations)
    source = LabSourceConfig.model_validate(lineage.ancestor(artifact, "subsample").config["source"])
    problems = draw_problems(source.task, "train", arguments.prompts, arguments.seed)
    asked = [renderer.prompt(tokenizer, problem.prompt) for problem in problems]

    def accuracy() -> float:
        answers = engine.generate(asked, Sampling(0.7, limit, end), seed=arguments.seed)
        read = [read_result(decode_response(tokenizer, answer.response)) for answer in answers]
        return sum(answer == str(p.result) for answer, p in zip(read, problems, strict=True)) / len(problems)

    recorder = Curves(accuracy)
    definition = lineage.definition(artifact).model_copy(update={"formula": formula})
    ReinforceLoop(
        policy=policy,
        engine=engine,
        reward=lineage.defined_reward(artifact, definition, execution),
        trainer=Trainer(policy, settings, optimizer_steps(len(prompts), settings), execution),
        config=settings,
        end_token=end,
        decode=lambda ids: decode_response(tokenizer, ids),
        recorder=recorder,
    ).run(prompts)
    return recorder.curve


def markdown(runs: Mapping[str, Curve]) -> str:
    """A line a run: accuracy in percent of SFT, of the best policy on the way, and of the policy that each guard
    leaves, with that policy's iteration and, where the guard ended the run, the iteration at which it did."""
    lines = [f"| run | SFT | best | {' | '.join(RULES)} |", "|---|--:|--:|" + "--:|" * len(RULES)]
    for row in as_rows(runs):
        left = [
            f"{100 * guard['accuracy']:.0f} ({guard['kept']}"
            + (f" of {guard['stopped']})" if guard["stopped"] else ")")
            for guard in row["guards"].values()
        ]
        lines.append(f"| {row['run']} | {100 * row['sft']:.0f} | {100 * row['best']:.0f} | {' | '.join(left)} |")
    return "\n".join(lines)


def as_rows(runs: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """What each guard leaves of each run; `stopped` is None where the run went on to its end."""
    rows = []
    for name, curve in runs.items():
        accuracies = [point["accuracy"] for point in curve]
        guards = {}
        for rule, settings in RULES.items():
            kept, stopped = replay(settings, curve)
            guards[rule] = {"accuracy": accuracies[kept - 1], "kept": kept, "stopped": stopped}
        rows.append({"run": name, "sft": accuracies[0], "best": max(accuracies), "guards": guards})
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reward", nargs="*", help="IDs of reward artifacts of the lab; the newest if left out")
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--iterations", type=int, default=18)
    parser.add_argument("--rollouts", type=int, default=96, help="responses of one iteration, a multiple of four")
    parser.add_argument("--max-response-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=128, help="training prompts on which the accuracy is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write all curves there")
    parser.add_argument("--from", type=Path, dest="read", metavar="FILE", help="replay on curves that were kept")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args(words)
    if arguments.rollouts < 4 or arguments.rollouts % 4:
        parser.error("--rollouts: a multiple of four is needed, one batch for each of four steps")
    runs: dict[str, Curve] = json.loads(arguments.read.read_text()) if arguments.read else {}
    if not arguments.read:
        store = Store.open()
        lineage = Lineage(store)
        newest = [record.id for record in store.records("reward") if record.finished][:1]
        if not (chosen := arguments.reward or newest):
            parser.error("there is no reward artifact in DPR_HOME; make one with: dpr run demo")
        for given in chosen:
            artifact = store.fetch(store.resolve(given), stages=("reward",))
            for regime in arguments.regimes:
                runs[f"{artifact.id[:8]}: {regime}"] = train(lineage, artifact, regime, arguments)
                if arguments.keep:
                    arguments.keep.write_text(json.dumps(runs))
    print(json.dumps(as_rows(runs), indent=2) if arguments.json else markdown(runs))


if __name__ == "__main__":
    main()
