"""How the facts look on a terminal: tables of a title and two columns, sizes with their unit.

Names and paths are shown as they are, brackets included, but for what is not printable; a row is one line however long
it is.
"""

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from ..manifests.console import printable
from .recipefile import runs


def table(title: str, rows: Iterable[tuple[str, str]]) -> Text:
    """A line for each (name, value) under a title."""
    listed = [(printable(name), printable(value)) for name, value in rows]
    width = max(len(name) for name, _ in listed)
    lines = [Text.assemble((name.ljust(width), "dim"), f"  {value}") for name, value in listed]
    return Text("\n").join([Text(printable(title), "bold"), *lines])


def plan_table(facts: dict[str, Any]) -> Text:
    """What `plan` shows: how the recipe was chosen, if it was, and what would be written."""
    if "choice" in facts:
        return Text("\n").join([choice_table(facts["choice"]), _plan_table(facts)])
    return _plan_table(facts)


def choice_table(choice: dict[str, Any]) -> Text:
    """Which recipe was chosen, why, and what the next better and the next smaller would be."""
    what = "predicted KL" if choice["sensitivities"]["measured"] else "summed error"
    rows = [
        ("asked for", _wish(choice)),
        ("counted", _counted(choice)),
        *[(layers(group["layers"]), _group(group, what)) for group in choice["layers"]],
        ("together", f"{amount(choice['expert_bytes'])} of experts, {what} {choice['cost']:.4g}{_trunk_cost(choice)}"),
        *[("instead", f"{_size(other)}, {what} {other['cost']:.4g}") for other in choice["other_sizes"]],
        *[(name, _step(choice[key], what)) for name, key in (("save", "saving"), ("spend", "spending")) if choice[key]],
    ]
    return table("This recipe was chosen", rows)


def _wish(choice: dict[str, Any]) -> str:
    if choice["budget_bytes"] is not None:
        left = amount(choice["expert_capacity_bytes"])
        return f"a pack of at most {amount(choice['budget_bytes'])}, which leaves {left} for experts"
    return f"at most {choice['bits']} bits per expert weight, padding of records not counted"


def _counted(choice: dict[str, Any]) -> str:
    sample = f"relative squared weight error of {choice['sampled_experts_per_layer']} experts per layer"
    measured = choice["sensitivities"]
    if not measured["measured"]:
        return f"{sample}, every matrix alike: no sensitivities were given"
    return f"{sample} x sensitivity, measured at {measured['positions']} positions with {measured['format']}"


def _group(group: dict[str, Any], what: str) -> str:
    return f"{_formats(group['formats'])}: {amount(group['bytes'])}, {what} {group['cost']:.4g}"


def _formats(formats: dict[str, str]) -> str:
    if len(set(formats.values())) == 1:
        return formats["gate"]
    return ", ".join(f"{projection} {name}" for projection, name in formats.items())


def _trunk_cost(choice: dict[str, Any]) -> str:
    trunk = f", trunk {choice['recipe']['trunk']}"
    return f"{trunk} {choice['trunk_cost']:.4g}" if choice["trunk_cost"] else trunk


def _size(other: dict[str, Any]) -> str:
    return f"{amount(other['expert_bytes'])} of experts"


def _step(step: dict[str, Any], what: str) -> str:
    before, after = step["before"], step["after"]
    changed = (f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])
    return f"{amount(abs(step['bytes']))} in layer {step['layer']}: {', '.join(changed)}; {what} {step['cost']:+.4g}"


def _plan_table(facts: dict[str, Any]) -> Text:
    experts, disk = facts["experts"], facts["disk"]
    source = facts["source"]
    rows = [
        ("source", f"{source['repository'] or source['directory']}, {source['dialect']}, {amount(source['bytes'])}"),
        ("", f"experts of {_list(source['expert_encodings'])}, a trunk of {_list(source['trunk_encodings'])}"),
        *[("left out", f"{left['what']}, {amount(left['bytes'])}") for left in facts["left_out"]],
        *_common_rows(facts),
        ("experts", f"{amount(experts['bytes'])}, {experts['bits_per_weight']:.2f} bits per weight{_origin(facts)}"),
        ("trunk", _trunk(facts["trunk"])),
        ("other files", amount(sum(facts[f"{part}_bytes"] for part in ("digests", "sums", "copied")))),
        ("total", f"{amount(facts['total_bytes'])} and a manifest, {facts['bits_per_weight']:.2f} bits per weight"),
        ("free", f"{amount(disk['free_bytes'])} at {disk['path']}: {'enough' if disk['fits'] else 'NOT ENOUGH'}"),
        ("time", _time(facts["estimate"])),
    ]
    return table("This pack would be written", rows)


def pack_table(facts: dict[str, Any]) -> Text:
    """What `inspect` shows."""
    source = facts["source"]
    where = source["repository"] and f"{source['repository']}@{source['revision']}"
    rows = [
        ("source", f"{where or 'a local directory'}, {source['dialect']}, weight files: {source['files']}"),
        *_common_rows(facts),
        ("experts", f"{amount(facts['experts']['bytes'])}, {', '.join(facts['experts']['formats'])}"),
        ("trunk", _trunk(facts["trunk"])),
        *[(name, amount(size)) for name, size in facts["files"].items()],
        ("total", f"{amount(facts['total_bytes'])} and the manifest"),
    ]
    return table(facts["pack"], rows)


def build_table(facts: dict[str, Any]) -> Text:
    """What `build` shows when it is done."""
    rows = [
        ("experts", amount(facts["expert_bytes"])),
        ("trunk", amount(facts["trunk_bytes"])),
        ("total", f"{amount(facts['total_bytes'])}, {facts['bits_per_weight']:.2f} bits per weight"),
        ("digest", facts["pack_digest"]),
        *_choosing_rows(facts["this_run"]),
        ("time", duration(facts["seconds"])),
    ]
    return table(facts["pack"], rows)


def _choosing_rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    """For a method that may take a simpler one's result, how often this run's matrices did."""
    if not (taken := run["quantized"].get("gptq")):
        return []
    counts = ", ".join(f"{found} for {count}" for found, count in taken.items())
    partly = run["layers"] < run["of_layers"]
    where = f", in the {run['layers']} of {run['of_layers']} layers that this run packed" if partly else ""
    return [("gptq", f"of {sum(taken.values())} matrices, took {counts}{where}")]


def amount(size: int) -> str:
    """A size in GB, MB or bytes, all decimal."""
    if size >= 1_000_000_000:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size} bytes"


def layers(listed: str) -> str:
    """What a sentence calls layers that are listed as 3 or as 0-9,12."""
    return f"layer {listed}" if listed.isdigit() else f"layers {listed}"


def _common_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    model, recipe, experts = facts["model"], facts["recipe"], facts["experts"]
    full = model["full_attention_layers"]
    return [
        ("model", f"{model['family']}, {model['layers']} layers, {full} of them full attention"),
        ("", f"{model['experts']} experts in each layer, {model['experts_per_token']} per token"),
        ("recipe", f"experts {recipe['expert_format']} by {recipe['method']}, trunk {recipe['trunk_format']}"),
        *[("", _override(override)) for override in recipe.get("overrides", ())],
        *([("calibration", recipe["calibration"]["digest"])] if "calibration" in recipe else []),
        *_record_rows(experts),
    ]


def _override(override: dict[str, Any]) -> str:
    where = f"{' and '.join(override['projections'])} of {layers(runs(tuple(override['layers'])))}"
    return f"{where}: {override['expert_format']} by {override['method']}"


def _record_rows(experts: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each layout, naming its layers if there are several layouts."""
    layouts = experts["layouts"]
    rows = []
    for layout in layouts:
        where = f"{layers(layout['layers'])}: " if len(layouts) > 1 else ""
        rows.append(f"{where}{layout['record_bytes']} bytes, {layout['padding_bytes']} of them padding")
    rows[-1] += f"; aligned to {experts['alignment_bytes']}; there are {experts['records']}"
    return [("record" if not index else "", row) for index, row in enumerate(rows)]


def _list(names: list[str]) -> str:
    return " and ".join(names)


def _origin(facts: dict[str, Any]) -> str:
    return ", passed through bit for bit" if facts["experts"]["passed_through"] else ""


def _trunk(trunk: dict[str, Any]) -> str:
    return f"{amount(trunk['bytes'])}, {trunk['tensors']} tensors, quantized matrices: {trunk['quantized']}"


def _time(estimate: dict[str, Any]) -> str:
    read, write = estimate["read_bytes_per_second"] / 1e9, estimate["write_bytes_per_second"]
    disks = (
        f"reading at {read:.2f} GB/s and writing at {write / 1e9:.2f} GB/s" if write else f"reading at {read:.2f} GB/s"
    )
    rate = estimate["expert_weights_per_second_per_job"]
    speed = f" at {rate / 1e6:.0f} million weights per second on each of {estimate['jobs']} threads" if rate else ""
    work = f"{duration(estimate['quantizing_seconds'])} of quantizing{speed}, "
    return (
        f"about {duration(estimate['seconds'])}: {work if estimate['quantizing_seconds'] else ''}"
        f"{duration(estimate['disk_seconds'])} of {disks}, as tried for a moment now"
    )


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
