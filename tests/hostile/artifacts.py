# ruff: noqa: E501 (a table: one line for an artifact)
"""Hostile packs, as exact edits of one tiny pack: the rule that each breaks, and what the commands must say of it.

Kept for ever. Edits of the manifest are sealed again, as by an attacker who knows the format; so is what they tell of
other files. `opens` is the exit code of what opens a pack (inspect, doctor), `verifies` that of verify.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinypack import edit_manifest, replace_file

from moepack.manifests import digest

Edit = Callable[[Path], Any]
LAYER = "experts/layer_01.bin"
SUMS = "SHA256SUMS"
STRIDE = 16384
USED = 1408


@dataclass(frozen=True)
class Artifact:
    rule: str
    edit: Edit
    says: str
    opens: int = 3
    verifies: int = 3


def put(path: str, value: Any) -> Edit:
    """Set a field of the manifest; numbers index lists."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def edit(fields: Any) -> None:
        for part in parents:
            fields = fields[part]
        fields[last] = value

    return lambda pack: edit_manifest(pack, edit)


def drop(path: str) -> Edit:
    """Remove a field of the manifest, or an item of a list in it."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def edit(fields: Any) -> None:
        for part in parents:
            fields = fields[part]
        del fields[last]

    return lambda pack: edit_manifest(pack, edit)


def manifest(content: bytes) -> Edit:
    """Other bytes in the manifest's place."""
    return lambda pack: replace_file(pack / "manifest.json", content)


def in_manifest(old: bytes, new: bytes) -> Edit:
    """Bytes of the manifest exchanged, and nothing sealed."""

    def edit(pack: Path) -> None:
        content = (pack / "manifest.json").read_bytes()
        assert old in content
        replace_file(pack / "manifest.json", content.replace(old, new, 1))

    return edit


def resealed(name: str, change: Callable[[bytes], bytes]) -> Edit:
    """A file changed, and with it all that is told of it: size and digest in the manifest, its line in SHA256SUMS."""

    def edit(pack: Path) -> None:
        content = change((pack / name).read_bytes())
        replace_file(pack / name, content)
        edit_manifest(pack, lambda fields: relist(fields, name, content))
        if name != SUMS:
            summed(name, content)(pack)

    return edit


def summed(name: str, content: bytes) -> Edit:
    def change(sums: bytes) -> bytes:
        line = f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()
        return b"".join(line if each[66:-1] == name.encode() else each for each in sums.splitlines(keepends=True))

    return resealed(SUMS, change)


def relist(fields: Any, name: str, content: bytes) -> None:
    (listed,) = [file for file in fields["files"] if file["name"] == name]
    listed |= {"size": len(content), "blake3": digest.of_bytes(content).hex()}


def trunk(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """The trunk's header changed, its data kept."""

    def rewritten(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return resealed("trunk.safetensors", rewritten)


def header(text: bytes) -> Edit:
    """Another header before the trunk's data."""
    return resealed("trunk.safetensors", lambda content: len(text).to_bytes(8, "little") + text + content)


def described(name: str, **facts: Any) -> Edit:
    return trunk(lambda header: header[name].update(facts))


def flipped(name: str, at: int) -> Edit:
    def edit(pack: Path) -> None:
        content = bytearray((pack / name).read_bytes())
        content[at] ^= 1
        replace_file(pack / name, content)

    return edit


def swapped(pack: Path) -> None:
    content = (pack / LAYER).read_bytes()
    replace_file(pack / LAYER, content[STRIDE : 2 * STRIDE] + content[:STRIDE] + content[2 * STRIDE :])


def other_sum(content: bytes) -> bytes:
    *others, last = content.splitlines(keepends=True)
    return b"".join(others) + (b"1" if last[:1] == b"0" else b"0") + last[1:]


def many_records(pack: Path) -> None:
    def edit(fields: Any) -> None:
        fields["model"].update(layer_types=["full_attention"] * 33, num_experts=65536)
        fields["layers"] = fields["layers"][:1] * 33

    edit_manifest(pack, edit)


def linked(name: str) -> Edit:
    def edit(pack: Path) -> None:
        away = pack.parent / f"away-{Path(name).name}"
        (pack / name).rename(away)
        (pack / name).symlink_to(away)

    return edit


def instead(name: str, make: Callable[[Path], Any]) -> Edit:
    def edit(pack: Path) -> None:
        (pack / name).unlink()
        make(pack / name)

    return edit


def cut(name: str, by: int) -> Edit:
    def edit(pack: Path) -> None:
        (pack / name).chmod(0o644)
        os.truncate(pack / name, (pack / name).stat().st_size + by)

    return edit


def renamed(old: str, new: str) -> Edit:
    """A file under another name, in the manifest too."""

    def edit(pack: Path) -> None:
        (pack / old).rename(pack / new)

        def tell(fields: Any) -> None:
            (listed,) = [file for file in fields["files"] if file["name"] == old]
            listed["name"] = new
            fields["files"].sort(key=lambda file: file["name"])

        edit_manifest(pack, tell)
        lines = (pack / "SHA256SUMS").read_text().replace(f"  {old}\n", f"  {new}\n").splitlines(keepends=True)
        listing = "".join(sorted(lines, key=lambda line: line.partition("  ")[2])).encode()
        resealed("SHA256SUMS", lambda content: listing)(pack)

    return edit


BILLION = 1_000_000_000
DAMAGED = (0, 1)  # opens, and verify finds it
ARTIFACTS: dict[str, Artifact] = {
    "no manifest": Artifact("M1", lambda pack: (pack / "manifest.json").unlink(), "manifest.json is missing"),
    "a manifest that is a link": Artifact("M1", linked("manifest.json"), "symbolic link"),
    "a manifest that is a folder": Artifact("M1", instead("manifest.json", Path.mkdir), "not a regular file"),
    "a manifest that is a pipe": Artifact("M1", instead("manifest.json", os.mkfifo), "not a regular file"),
    "a manifest of 100 MB": Artifact("M1", cut("manifest.json", 100_000_000), "at most 4194304 are allowed"),
    "an empty manifest": Artifact("M1", manifest(b""), "not acceptable JSON"),
    "a manifest of zeros": Artifact("M1", manifest(b"\0" * 4096), "not acceptable JSON"),
    "a manifest nested 65 deep": Artifact("M1", manifest(b"[" * 65 + b"]" * 65), "nested more than 64 deep"),
    "a manifest of 131,073 lists": Artifact("M1", manifest(b"[" * 2**17 + b"["), "more than 131072 values"),
    "a manifest with NaN": Artifact("M1", manifest(b'{"format":NaN}'), "NaN is not a JSON number"),
    "a manifest with 1e400": Artifact("M1", manifest(b'{"format":1e400}'), "beyond all floating-point numbers"),
    "a manifest with a key twice": Artifact("M1", in_manifest(b'"format"', b'"format":"x","format"'), "appears twice"),
    "a manifest with a mark": Artifact("M1", in_manifest(b"{", b"\xef\xbb\xbf{"), "byte order mark"),
    "a manifest with bad UTF-8": Artifact("M1", in_manifest(b"moepack", b"moe\xff"), "not acceptable JSON"),
    "a manifest with half a surrogate pair": Artifact("M1", in_manifest(b"moepack", b"\\ud800"), "surrogates not"),
    "a manifest with a space": Artifact("M2", in_manifest(b"{", b"{ "), "not canonical JSON"),
    "a manifest with 1.0 for 1": Artifact("M2", in_manifest(b'"version":1', b'"version":1.0'), "not canonical JSON"),
    "a manifest with an escape": Artifact("M2", in_manifest(b"moepack", b"moe\\u0070ack"), "not canonical JSON"),
    "a manifest with 2^53 + 1": Artifact("M2", in_manifest(b":1234", b":9007199254740993"), "not canonical JSON"),
    "a list": Artifact("M3", manifest(b"[]"), "is not the manifest of a pack"),
    "another format": Artifact("M3", put("format", "gguf"), "is not the manifest of a pack"),
    "an unknown field": Artifact("M3", put("extra", 1), "unknown field"),
    "an unknown field inside": Artifact("M3", put("model.extra", 1), "unknown field"),
    "a missing field": Artifact("M3", drop("model.vocab_size"), "missing required field"),
    "a text for a number": Artifact("M3", put("model.vocab_size", "5"), "Expected `int`"),
    "true for a number": Artifact("M3", put("model.vocab_size", True), "Expected `int`"),
    "half a token": Artifact("M3", put("model.vocab_size", 5.5), "Expected `int`"),
    "no tokens": Artifact("M3", put("model.vocab_size", 0), "Expected `int` >= 1"),
    "2^31 tokens": Artifact("M3", put("model.vocab_size", 2**31), "Expected `int` <= 2147483647"),
    "a billion experts": Artifact("M3", put("model.num_experts", BILLION), "Expected `int` <= 65536"),
    "no layers": Artifact("M3", put("model.layer_types", []), "length >= 1"),
    "4097 layers": Artifact("M3", put("model.layer_types", ["full_attention"] * 4097), "length <= 4096"),
    "an unknown kind of layer": Artifact("M3", put("model.layer_types.0", "mamba"), "Invalid enum value"),
    "a negative size": Artifact("M3", put("files.0.size", -1), "Expected `int` >= 0"),
    "a digest of 63 digits": Artifact("M3", put("files.0.blake3", "a" * 63), "matching regex"),
    "a digest in capitals": Artifact("M3", put("files.0.blake3", "A" * 64), "matching regex"),
    "a digest with a line break": Artifact("M3", put("files.0.blake3", "a" * 64 + "\n"), "length <= 64"),
    "a name of 129 characters": Artifact("M3", put("files.0.name", "a" * 129), "length <= 128"),
    "a dialect that is none": Artifact("M3", put("source.dialect", "gguf"), "Invalid enum value"),
    "empty overrides": Artifact("M3", put("recipe.overrides", []), "length >= 1"),
    "version 2": Artifact("M4", put("version", 2), "this moepack reads version 1", 5, 5),
    "version 0": Artifact("M4", put("version", 0), "this moepack reads version 1", 5, 5),
    "an unknown feature": Artifact("M4", put("requires", ["zstd"]), "requires 'zstd'", 5, 5),
    "a checksum of something else": Artifact("M5", in_manifest(b'"vocab_size":5', b'"vocab_size":6'), "altered", 1, 1),
    "more experts per token than there are": Artifact("M6", put("model.num_experts_per_tok", 4), "4 experts per token"),
    "heads that share unevenly": Artifact("M7", put("model.full_attention.num_kv_heads", 3), "do not share"),
    "odd rotary dimensions": Artifact("M7", put("model.full_attention.rotary_dims", 3), "not an even part"),
    "an epsilon of 0": Artifact("M8", put("model.rms_norm_eps", 0), "not a positive number"),
    "a layer file too few": Artifact("M9", drop("layers.1"), "1 layer files for 2 layers"),
    "two million records and more": Artifact("M10", many_records, "2162688 records"),
    "a layer outside": Artifact("M11", put("layers.1.file", "../layer_01.bin"), "instead of 'experts/layer_01.bin'"),
    "an absolute layer": Artifact("M11", put("layers.1.file", "/etc/passwd"), "instead of 'experts/layer_01.bin'"),
    "one file for two layers": Artifact("M11", put("layers.1.file", "experts/layer_00.bin"), "layer 1 is in"),
    "a projection without a format": Artifact("M12", drop("layers.0.formats.up"), "names the formats of"),
    "a component too few": Artifact("M13", drop("layers.0.components.8"), "no formats of gate, up and down give"),
    "a component of another name": Artifact("M13", put("layers.0.components.0.name", "gate.pickle"), "no formats"),
    "components that overlap": Artifact("M14", put("layers.0.components.1.offset", 0), "do not follow byte"),
    "components with a hole": Artifact("M14", put("layers.0.components.1.offset", 260), "do not follow byte"),
    "a component of nothing": Artifact("M14", put("layers.0.components.8.size", 0), "0 bytes"),
    "a stride of 0": Artifact("M15", put("layers.0.stride", 0), "every 0 bytes"),
    "a stride that is not aligned": Artifact("M15", put("layers.0.stride", 1408), "every 1408 bytes"),
    "a stride with room for more": Artifact("M15", put("layers.0.stride", 32768), "every 32768 bytes"),
    "a trunk outside": Artifact("M16", put("trunk.file", "../trunk.safetensors"), "instead of 'trunk.safetensors'"),
    "digests that are the config": Artifact("M16", put("digests", "config.json"), "instead of 'digests.bin'"),
    **{
        f"a file called {name!r}": Artifact("M17", put("files.0.name", name), "is not a name that a file of a pack")
        for name in ("../a", "/etc/passwd", "a/b", "a\\b", "C:a", "..", "", "a\0b", "con", "LPT1.txt", "a.", "-a", "ä")
    },
    "two names that differ in case": Artifact(
        "M18", put("files.0.name", "Trunk.safetensors"), "is listed twice"
    ),
    "names out of order": Artifact("M18", put("files.0.name", "zz"), "not in the order of their names"),
    "no digests among the files": Artifact("M19", drop("files.2"), "'digests.bin' is not among the files"),
    "digests for more records": Artifact("M19", put("files.2.size", 224), "'digests.bin' has 224 bytes"),
    "an override of no layer": Artifact(
        "M20",
        put("recipe.overrides", [
            {"layers": [2], "projections": ["up"], "expert_format": "affine4-g32", "method": "mse"}
        ]),
        "overrides layer 2 of a model of 2 layers",
    ),
    "a stray file": Artifact("P1", lambda pack: (pack / "x.py").write_bytes(b"1"), "does not belong", 0, 1),
    "a stray layer": Artifact("P1", lambda pack: (pack / "experts/layer_02.bin").write_bytes(b"1"), "not belong", 0, 1),
    "no layer": Artifact("P2", lambda pack: (pack / LAYER).unlink(), "is missing", 3, 1),
    "a layer that is a link": Artifact("P2", linked(LAYER), "is a symbolic link", 3, 1),
    "experts behind a link": Artifact("P2", linked("experts"), "behind a symbolic link", 3, 1),
    "a layer that is a pipe": Artifact("P2", instead(LAYER, os.mkfifo), "is not a regular file", 3, 1),
    "a layer a byte short": Artifact("P2", cut(LAYER, -1), "bytes instead of 49152", 3, 1),
    "a layer a byte long": Artifact("P2", cut(LAYER, 1), "bytes instead of 49152", 3, 1),
    "a config that is a link": Artifact("P2", linked("config.json"), "is a symbolic link", 3, 1),
    "a flipped bit": Artifact("P3", flipped(LAYER, 100), "layer 1, expert 0, gate.weight is damaged", *DAMAGED),
    "two records swapped": Artifact("P3", swapped, "layer 1, expert 0", *DAMAGED),
    "another component's digest": Artifact("P4", put("layers.1.components.0.blake3", "0" * 64), "gate.weight", *DAMAGED),
    "a flipped bit in digests.bin": Artifact("P5", flipped("digests.bin", 0), "digests.bin", 1, 1),
    "a flipped bit in the config": Artifact("P5", flipped("config.json", 3), "config.json is damaged", *DAMAGED),
    "a bit in the padding": Artifact("P6", flipped(LAYER, USED), "padding is not zero", *DAMAGED),
    "another SHA-256 of the trunk": Artifact("P7", resealed("SHA256SUMS", other_sum), "another SHA-256 than it has", *DAMAGED),
    "sums that are not sorted": Artifact("P7", resealed("SHA256SUMS", lambda c: b"".join(reversed(c.splitlines(keepends=True)))), "is not the sorted list", *DAMAGED),
    "a format that is none": Artifact("F1", put("layers.0.formats.up", "q4_k"), "not a weight format", 5, 5),
    "a trunk in a format of experts": Artifact("F1", put("trunk.formats.lm_head", "book2-g8"), "not of the trunk", 5, 5),
    "rows of no whole groups": Artifact("F2", put("model.hidden_size", 48), "do not divide"),
    "formats of other sizes": Artifact("F3", put("layers.0.formats.up", "affine4-g32"), "other sizes"),
    "a trunk of 7 bytes": Artifact("T1", resealed("trunk.safetensors", lambda c: c[:7]), "only 7 bytes"),
    "a trunk header of 2^63": Artifact("T1", resealed("trunk.safetensors", lambda c: b"\xff" * 8 + c[8:]), "announces"),
    "a trunk header that is a list": Artifact("T1", header(b"[]"), "does not begin with '{'"),
    "a trunk header nested deeply": Artifact("T1", header(b'{"a":' + b"[" * 100_000), "nested"),
    "a trunk tensor twice": Artifact(
        "T1", header(b'{"a":%s,"a":%s}' % ((b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',) * 2)), "twice"
    ),
    "a trunk with a hole": Artifact("T1", resealed("trunk.safetensors", lambda c: c + b"\0"), "accounts for only"),
    "a trunk cut short": Artifact("T1", resealed("trunk.safetensors", lambda c: c[:-1]), "truncated"),
    "a trunk tensor of another shape": Artifact("T1", described("model.norm.weight", shape=[33]), "another size"),
    "a trunk tensor of 2^53 rows": Artifact("T1", described("model.norm.weight", shape=[2**53, 2**53]), "another size"),
    "a trunk tensor of negative rows": Artifact("T1", described("model.norm.weight", shape=[-32]), "list of sizes"),
    "a trunk dtype that is none": Artifact("T1", described("model.norm.weight", dtype="PICKLE"), "unknown dtype"),
    "a trunk of 8-bit floats": Artifact(
        "T1", described("model.norm.weight", dtype="F8_E5M2", shape=[128]), "which no trunk holds"
    ),
    "a trunk tensor out of line": Artifact(
        "T2", resealed("trunk.safetensors", lambda c: (int.from_bytes(c[:8], "little") + 1).to_bytes(8, "little")
                       + c[8 : 8 + int.from_bytes(c[:8], "little")] + b" " + c[8 + int.from_bytes(c[:8], "little") :]),
        "is not aligned",
    ),
    "a quantized matrix that is not there": Artifact("T3", put("trunk.formats.missing", "affine4-g32"), "not a whole"),
    "codes of another width": Artifact("T3", put("trunk.formats.lm_head", "affine8-g32"), "not a whole"),
}  # fmt: skip

# What lies just within a rule. It opens; verify may still object to bytes that no longer fit.
SOUND: dict[str, tuple[str, Edit]] = {
    "as it was written": ("P1", lambda pack: None),
    "a name of 64 characters": ("M17", renamed("config.json", "a" * 64)),
    "a name with a dot and a dash": ("M17", renamed("config.json", "a.b-c_d.e")),
    "a name like a device's": ("M17", renamed("config.json", "console.json")),
    "as many experts per token as there are": ("M6", put("model.num_experts_per_tok", 3)),
    "as many rotary dimensions as a head has": ("M7", put("model.full_attention.rotary_dims", 16)),
    "the smallest epsilon": ("M8", put("model.rms_norm_eps", 5e-324)),
    "the most tokens": ("M3", put("model.vocab_size", 2**31 - 1)),
    "a repository's name of 256 characters": ("M3", put("source.repository", "r" * 256)),
    "an override of every layer": (
        "M20",
        put("recipe.overrides", [
            {"layers": [0, 1], "projections": ["up"], "expert_format": "affine4-g32", "method": "mse"}
        ]),
    ),
    "a trunk with a name of 1024 characters": (
        "T1", trunk(lambda header: header.update({"n" * 1024: header.pop("model.norm.weight")}))
    ),
    "an empty tensor in the trunk": (
        "T1", trunk(lambda header: header.update(zero={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}))
    ),
}  # fmt: skip
