"""The losses of a configuration as a formula; what is left at its default is not spelled out."""

from typing import Any

from entrenar_core.config.desugaring import Term, terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import ExitLoss, LabelLoss, SoftLoss
from entrenar_core.config.schedules import Remainder, Schedule, Setting


def formula(section: DistillationSection) -> str:
    """Such as `0.5 × forward_kl(T=2) + 0.5 × CE`; a schedule shows where it leads: `(4 → 1, cosine)`."""
    return " + ".join(f"{_setting(term.weight)} × {_loss(term)}" for term in terms_of(section))


def _loss(term: Term) -> str:
    name = "CE" if isinstance(term.entry, LabelLoss) else term.entry.name
    said = [] if term.temperature is None else [f"T={_setting(term.temperature)}"]
    said += [f"{key}={_value(value)}" for key, value in _unusual(term)]
    return f"{name}({', '.join(said)})" if said else name


def _unusual(term: Term) -> list[tuple[str, Any]]:
    usual = type(term.entry).model_fields
    shown = {"layers"} if not isinstance(term.entry, SoftLoss | LabelLoss | ExitLoss) else set()
    return [
        (name, value)
        for name, value in term.entry
        if name not in ("name", "weight", "temperature") and (name in shown or value != usual[name].default)
    ]


def _setting(setting: Setting) -> str:
    if isinstance(setting, Remainder):
        return f"(1 − {_setting(setting.of)})" if isinstance(setting.of, Schedule) else f"{1 - setting.of:g}"
    if not isinstance(setting, Schedule):
        return f"{setting:g}"
    steps = [f"{setting.warmup_from:g}"] if setting.warmup_from is not None else []
    steps += [f"{setting.start:g}"] + ([f"{setting.end:g}"] if setting.end is not None else [])
    return f"({' → '.join(steps)}, {setting.schedule})"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " ".join("→".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)
