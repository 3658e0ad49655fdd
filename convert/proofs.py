"""How what the proving commands found looks on a terminal, and what is said of another source."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from ..manifests.report import Finding
from .again import Again
from .lock import Lock
from .recipefile import runs
from .report import amount, duration, table

MOST_ROWS = 20
MEANINGS = {
    "model": "they are of different models",
    "source": "they were made from different weight files",
    "origin": "their weight files are the same, named as from different places",
    "recipe": "they were made by different recipes",
    "files": "their configuration or tokenizer files differ",
    "bytes": "source and recipe are the same, and the bytes are not",
    "form": "only their manifests differ, in form",
}


def verify_table(facts: dict[str, Any]) -> Text:
    """What `verify` and `scrub` show: one line for each finding, or that there is none, and what share was read."""
    read = facts["bytes_checked"] - facts["bytes_earlier"]
    rate = read / max(facts["seconds"], 1e-9)
    rows = [(finding["kind"], Finding(**finding).sentence) for finding in facts["findings"]]
    rows += [
        ("result", _intact(facts["scope"]) if facts["ok"] else f"findings: {len(facts['findings'])}"),
        ("digest", facts["pack_digest"]),
        *([("signed", f"by {facts['signed']['by']}")] if "signed" in facts else []),
        *([("checked", _share(facts))] if facts["scope"] != "full" or facts["bytes_earlier"] else []),
        ("read", f"{amount(read)} in {duration(facts['seconds'])}, {rate / 1e9:.2f} GB/s"),
    ]
    return table(facts["pack"], rows)


def _intact(scope: str) -> str:
    if scope == "full":
        return "intact: every byte is what the manifest says"
    if scope == "quick":
        return "sound: structure, sizes and small files are what the manifest says; no weights were read"
    return f"no damage in {scope} of it"


def _share(facts: dict[str, Any]) -> str:
    share = facts["bytes_checked"] / max(facts["bytes_total"], 1)
    records = f"{facts['records_checked']} of {facts['records_total']} records"
    earlier = f", {amount(facts['bytes_earlier'])} of that by earlier runs" if facts["bytes_earlier"] else ""
    return f"{records}, {amount(facts['bytes_checked'])} = {share:.1%} of all bytes{earlier}"


def meanings(found: Sequence[str]) -> str:
    """Why two packs differ, in words."""
    return "; ".join(MEANINGS[name] for name in found)


def diff_table(facts: dict[str, Any]) -> Text:
    """What `diff` shows."""
    found = facts["difference"]
    title = f"{facts['a']} and {facts['b']}"
    if found["identical"]:
        return table(
            title,
            [
                ("result", "identical, by their one digest; verify says whether their bytes are these"),
                ("digest", found["digest_a"]),
            ],
        )
    rows = [("result", meanings(found["meaning"])), ("digest", found["digest_a"]), ("", found["digest_b"])]
    for name in ("model", "source", "recipe"):
        rows += _few([(name, f"{change['field']}: {change['a']} and {change['b']}") for change in found[name]])
    rows += [("file", _file(change)) for change in found["files"]]
    rows += _few([("tensor", f"{change['field']}{_shapes(change)}") for change in facts["tensors"]])
    rows += _few([("layer", _layer(change)) for change in found["layers"]])
    rows += _few([("record", _record(change)) for change in facts["records"]])
    if facts["records_left"]:
        rows.append(("", f"and {facts['records_left']} records whose components were not compared"))
    return table(title, rows + [("remark", remark) for remark in found["remarks"]])


def _few(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    left = len(rows) - MOST_ROWS
    return rows if left <= 0 else [*rows[:MOST_ROWS], ("", f"and {left} more; --json names all")]


def _file(change: dict[str, Any]) -> str:
    if change["a"] == "absent" or change["b"] == "absent":
        return f"{change['field']} is only in {'B' if change['a'] == 'absent' else 'A'}"
    one, other = change["a"]["size"], change["b"]["size"]
    return f"{change['field']} differs" + (f", {one} and {other} bytes" if one != other else "")


def _shapes(change: dict[str, Any]) -> str:
    return f": {change['a']} and {change['b']}" if " " in change["a"] + change["b"] else ""


def _layer(change: dict[str, Any]) -> str:
    parts = [f"{one['field']} {one['a']} and {one['b']}" for one in change["formats"]]
    parts += [", ".join(change["components"])] if change["components"] else []
    if change["experts"]:
        parts.append(f"experts {runs(tuple(change['experts']))}")
    return f"{change['layer']}: {'; '.join(parts)}"


def _record(change: dict[str, Any]) -> str:
    return f"layer {change['layer']}, expert {change['expert']}: {', '.join(change['components'])}"


def source_remarks(made: Again, source: str, pack: Path) -> Iterator[str]:
    """What is said first if a checkpoint is not the one that a pack was made from."""
    for what, changed in (("weight files", made.source), ("configuration or tokenizer", made.files)):
        if changed:
            first = changed[0]
            yield f"{source} is not what {pack} was made from, by its {what}: {first.field} is {first.b}, not {first.a}"


def reproduce_table(facts: dict[str, Any]) -> Text:
    """What `reproduce` shows."""
    findings = [Finding(**finding) for finding in facts["findings"]]
    changed = [*facts["source"], *facts["files"]]
    rows = _few([("source", f"{change['field']} is {change['b']}, not {change['a']}") for change in changed])
    rows += _few([(finding.kind, finding.sentence) for finding in findings])
    compared = f"{facts['records_compared']} of {facts['records_total']} experts, {facts['how']}"
    rows += [
        ("result", "reproduced: the same bytes" if facts["ok"] else "not reproduced"),
        ("digest", facts["pack_digest"]),
        ("compared", f"{compared}{' and the trunk' if facts['trunk_compared'] else ''}"),
        ("", f"{amount(facts['bytes_compared'])} in {duration(facts['seconds'])}"),
        *([("hashed", "all weight files of the checkpoint")] if facts["source_digests"] else []),
    ]
    return table(facts["pack"], rows)


def repair_table(facts: dict[str, Any]) -> Text:
    """What `repair` shows."""
    rows = [("mended", _mended(mended)) for mended in facts["mended"]]
    rows += [("stray", f"{name} does not belong to the pack") for name in facts["stray"]]
    result = "repaired: every file has its digest" if facts["mended"] else "nothing was damaged"
    return table(facts["pack"], [*rows, ("result", result), ("digest", facts["pack_digest"])])


def _mended(mended: dict[str, Any]) -> str:
    experts = mended["experts"]
    if experts is None:
        return f"{mended['file']}, made again"
    which = f"expert{'' if len(experts) == 1 else 's'} {runs(tuple(experts))} made again" if experts else "cut to size"
    return f"{mended['file']}, {which}"


def of_lock(lock: Lock) -> dict[str, Any]:
    """What a lock names."""
    return {"lock": str(lock.path), "pack_digest": lock.pack_digest, "calibration": lock.calibration, **lock.names}


def lock_table(facts: dict[str, Any]) -> Text:
    """What `lock` shows."""
    where = facts["repository"] and f"{facts['repository']}@{facts['revision']}"
    rows: Iterable[tuple[str, str]] = [
        ("source", f"{where or 'a local directory'}, weight files: {facts['files']}"),
        ("recipe", f"{facts['recipe']['format']} by {facts['recipe']['method']}, trunk {facts['recipe']['trunk']}"),
        ("digest", facts["pack_digest"] or "none: build a pack and lock again with --pack to name one"),
    ]
    return table(facts["lock"], rows)
