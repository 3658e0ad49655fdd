"""How the facts look on a terminal: tables of a title and two columns, sizes with their unit."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from ..manifests.files import gigabytes
from ..manifests.report import Finding


def table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns without headings under a title."""
    made = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, title_style="bold")
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def plan_table(facts: dict[str, Any]) -> Table:
    """What `plan` shows."""
    experts, disk = facts["experts"], facts["disk"]
    source = facts["source"]
    rows = [
        ("source", f"{source['repository'] or source['directory']}, {source['dialect']}, {gigabytes(source['bytes'])}"),
        *[("left out", f"{left['what']}, {gigabytes(left['bytes'])}") for left in facts["left_out"]],
        *_common_rows(facts),
        ("experts", f"{gigabytes(experts['bytes'])}, {experts['bits_per_weight']:.2f} bits per weight{_origin(facts)}"),
        ("trunk", _trunk(facts["trunk"])),
        ("other files", gigabytes(facts["digests_bytes"] + facts["copied_bytes"])),
        ("total", f"{gigabytes(facts['total_bytes'])} and a manifest, {facts['bits_per_weight']:.2f} bits per weight"),
        ("free", f"{gigabytes(disk['free_bytes'])} at {disk['path']}: {'enough' if disk['fits'] else 'NOT ENOUGH'}"),
        ("time", _time(facts["estimate"])),
    ]
    return table("This pack would be written", rows)


def pack_table(facts: dict[str, Any]) -> Table:
    """What `inspect` shows."""
    source = facts["source"]
    where = source["repository"] and f"{source['repository']}@{source['revision']}"
    rows = [
        ("source", f"{where or 'a local directory'}, {source['dialect']}, weight files: {source['files']}"),
        *_common_rows(facts),
        ("experts", f"{gigabytes(facts['experts']['bytes'])}, {', '.join(facts['experts']['formats'])}"),
        ("trunk", _trunk(facts["trunk"])),
        *[(name, gigabytes(size)) for name, size in facts["files"].items()],
        ("total", f"{gigabytes(facts['total_bytes'])} and the manifest"),
    ]
    return table(facts["pack"], rows)


def build_table(facts: dict[str, Any]) -> Table:
    """What `build` shows when it is done."""
    rows = [
        ("experts", gigabytes(facts["expert_bytes"])),
        ("trunk", gigabytes(facts["trunk_bytes"])),
        ("total", f"{gigabytes(facts['total_bytes'])}, {facts['bits_per_weight']:.2f} bits per weight"),
        ("digest", facts["pack_digest"]),
        ("time", _duration(facts["seconds"])),
    ]
    return table(facts["pack"], rows)


def verify_table(facts: dict[str, Any]) -> Table:
    """What `verify` shows: one line for each finding, or that there is none."""
    rate = facts["bytes_checked"] / max(facts["seconds"], 1e-9)
    rows = [("damage", Finding(**finding).sentence) for finding in facts["findings"]]
    rows += [
        ("result", "intact: every byte is what the manifest says" if facts["ok"] else f"findings: {len(rows)}"),
        ("digest", facts["pack_digest"]),
        ("read", f"{gigabytes(facts['bytes_checked'])} in {_duration(facts['seconds'])}, {rate / 1e9:.2f} GB/s"),
    ]
    return table(facts["pack"], rows)


def _common_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    model, recipe, experts = facts["model"], facts["recipe"], facts["experts"]
    full = model["full_attention_layers"]
    return [
        ("model", f"{model['family']}, {model['layers']} layers, {full} of them full attention"),
        ("", f"{model['experts']} experts in each layer, {model['experts_per_token']} per token"),
        ("recipe", f"experts {recipe['expert_format']} by {recipe['method']}, trunk {recipe['trunk_format']}"),
        (
            "record",
            f"{experts['record_bytes']} bytes, {experts['padding_bytes']} of them padding,"
            f" aligned to {experts['alignment_bytes']}; there are {experts['records']}",
        ),
    ]


def _origin(facts: dict[str, Any]) -> str:
    return ", passed through bit for bit" if facts["experts"]["passed_through"] else ""


def _trunk(trunk: dict[str, Any]) -> str:
    return f"{gigabytes(trunk['bytes'])}, {trunk['tensors']} tensors, quantized matrices: {trunk['quantized']}"


def _time(estimate: dict[str, Any]) -> str:
    rate = estimate["expert_weights_per_second_per_job"]
    if rate is None and not estimate["quantizing_seconds"]:
        return "nothing to quantize: as long as reading and writing take"
    speed = f", at {rate / 1e6:.0f} million weights per second on each of {estimate['jobs']} threads" if rate else ""
    return f"about {_duration(estimate['quantizing_seconds'])} of quantizing{speed} as measured now; disk not counted"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
