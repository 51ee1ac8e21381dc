"""The models, rows, caches and runs that the parts of the benchmark share: each is made when it is first asked for."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cached.jobs import CACHES, ENCODERS, LIVE, Language, build, work, write_config

PEER, CACHED = "TRL GKD", "cached"
SPEEDY = ("hidden, bfloat16", "top-k, 100", "sampled, 50")
BUILD_THREADS = 2
AGREEMENT = {PEER: 1e-3, "hidden, bfloat16": 1e-2, CACHED: 1e-2}  # of the losses of every step with those of live
Side = dict[str, Any]


class Bench:
    """Models, rows and caches in a folder, each made when it is first asked for."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.language = Language(folder / "language")
        self.manifests: dict[str, Any] = {}
        self.runs: dict[str, list[Side]] = {}
        self.encoder_runs: dict[str, dict[str, list[Side]]] = {}

    @staticmethod
    def say(text: str) -> None:
        """What is done now."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def _said(self, turn: int, side: str, result: Side) -> None:
        self.say(f"round {turn + 1} of {self.rounds}: {side}: {result['cpu_s_per_step']:.3g} CPU s a step")

    def ready(self) -> Path:
        """The configuration of the builds."""
        file = self.folder / "build.json"
        if not file.exists():
            self.say("writes the rows, the teacher and two students of its layers")
            self.language.write()
            write_config(file, self.language.config("more"))
        return file

    def manifest(self, name: str) -> Any:
        """Of a cache, which is built."""
        if name not in self.manifests:
            config = self.ready()
            self.say(f"builds {name}")
            self.manifests[name] = build(config, self.language.cache(name), CACHES[name], BUILD_THREADS)
        return self.manifests[name]

    def language_runs(self) -> dict[str, list[Side]]:
        """What two epochs took, of every side, in turns."""
        if not self.runs:
            for name in SPEEDY:
                self.manifest(name)
            sides = [LIVE, *SPEEDY, *([PEER] if importlib.util.find_spec("trl") is not None else [])]
            for turn in range(self.rounds):
                for side in sides:
                    self.runs.setdefault(side, []).append(self._run(side))
                    self._said(turn, side, self.runs[side][-1])
                _require_same_losses(self.runs)
        return self.runs

    def _run(self, side: str) -> Side:
        language = self.language
        if side == PEER:
            steps = language.rows // language.batch
            return work(  # type: ignore[no-any-return]
                "trl", folder=str(language.folder), steps=2 * steps, length=language.length, batch=language.batch,
                warm_up=steps,
            )  # fmt: skip
        config = language.config(teacher=language.teacher(side), training={"epochs": 2})
        return work("run", config=str(write_config(self.folder / "run.json", config)))  # type: ignore[no-any-return]

    def encoders(self) -> dict[str, dict[str, list[Side]]]:
        """The same of encoders, live and cached."""
        if not self.encoder_runs:
            for number, encoder in enumerate(ENCODERS):
                cache, file = self.folder / f"encoder-{number}", self.folder / "encoder.json"
                self.say(f"builds {encoder.name}")
                build(write_config(file, encoder.config(self.folder / "out", None)), cache)
                for turn in range(self.rounds):
                    for side, used in ((LIVE, None), (CACHED, cache)):
                        write_config(file, encoder.config(self.folder / "out", used))
                        result = work("run", config=str(file))
                        self.encoder_runs.setdefault(encoder.name, {}).setdefault(side, []).append(result)
                        self._said(turn, f"{encoder.name}, {side}", result)
                _require_same_losses(self.encoder_runs[encoder.name])
        return self.encoder_runs


def _require_same_losses(runs: Mapping[str, Sequence[Side]]) -> None:
    live = runs[LIVE][-1]["losses"]
    for side, limit in AGREEMENT.items():
        if side not in runs:
            continue
        worst = max(abs(a - b) / abs(b) for a, b in zip(runs[side][-1]["losses"], live, strict=True))
        if worst > limit:
            raise SystemExit(f"{side} does not do what {LIVE} does: losses differ by {worst:.2g}")
