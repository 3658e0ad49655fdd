"""What `calibrate` and `inspect` tell of a calibration; sizes in bytes, times in seconds."""

from typing import Any

import msgspec
from rich.text import Text

from ..report import amount, table
from .file import CalibrationFile
from .plan import CalibrationPlan

ENOUGH_HELD_OUT = 4096  # 8,000 were enough on the trained model, 1,000 were not: see docs/calibration.md


def planned(plan: CalibrationPlan) -> str:
    """What a calibration will take, in a sentence or two, before it starts."""
    text, kept = plan.facts.text, plan.facts.shape
    measured = f"; sensitivities on {plan.measured_tokens} tokens" if plan.measured_tokens else ""
    return (
        f"calibrating on {text.tokens} tokens in {text.windows} windows, {text.held_out_tokens} of them held out;"
        f" hidden states {amount(plan.state_bytes)}, correlations {amount(kept.correlation_bytes)}"
        f" (experts' own: {kept.expert_hessians}){measured}; at most {amount(plan.disk_bytes)} of disk and about"
        f" {amount(plan.memory_bytes)} of memory"
    )


def remark(plan: CalibrationPlan) -> str | None:
    """What is to be said of a calibration that is too small to be of use, if it is."""
    text = plan.facts.text
    if text.held_out_tokens >= ENOUGH_HELD_OUT:
        return None
    return (
        f"only {text.held_out_tokens} tokens are held out: with fewer than {ENOUGH_HELD_OUT}, what gptq gains is hardly"
        " told from chance; give a longer text, or more --tokens"
    )


def document(opened: CalibrationFile, seconds: float | None = None) -> dict[str, Any]:
    """For `--json`, and for the table."""
    found = {
        "calibration": str(opened.path),
        "digest": opened.digest,
        "bytes": opened.path.stat().st_size,
        **msgspec.to_builtins(opened.facts),
        "sensitivities": msgspec.to_builtins(opened.sensitivities),
    }
    return found if seconds is None else {**found, "seconds": seconds}


def calibration_table(found: dict[str, Any]) -> Text:
    """What a person sees of it."""
    model, text = found["model"], found["text"]
    rows = [
        ("model", f"{model['layers']} layers of {model['experts']} experts, {model['experts_per_token']} per token"),
        ("", model["digest"]),
        ("text", f"{text['tokens']} tokens in {text['windows']} windows of up to {text['window']}"),
        ("", f"{text['digest']}, {text['held_out_tokens']} tokens held out"),
        *([("through", found["through"])] if found["through"] else []),
        (
            "Hessians",
            {"none": "of layers", "inner": "of layers, and each expert's of down"}.get(
                found["expert_hessians"], "of layers and of each expert"
            ),
        ),
        *_sensitivity_rows(found["sensitivities"]),
        ("size", amount(found["bytes"])),
        ("digest", found["digest"]),
    ]
    return table(found["calibration"], rows)


def _sensitivity_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    values = sorted((layer[name], index, name) for index, layer in enumerate(found["layers"]) for name in layer)
    least, most = values[0], values[-1]
    return [
        ("sensitivity", f"KL per relative squared error, at {found['positions']} positions with {found['format']}:"),
        ("", f"{most[0]:.3g} in layer {most[1]}, {most[2]}, down to {least[0]:.3g} in layer {least[1]}, {least[2]}"),
    ]
