"""Documents that ask a parser for too much: each must be refused, or read, within the bounds that we state.

`DOCUMENTS` maps a parser to cases; a case makes its bytes when it is asked to, so that a child can do it.
"""

import json
import struct
from collections.abc import Callable
from typing import Any

from blake3 import blake3

Made = Callable[[], bytes]
MIB = 2**20


def members(count: int, of: str) -> bytes:
    """An object of `count` members; `of` is a member, with %d for its number."""
    return b"{" + ",".join(of % ((index,) * of.count("%d")) for index in range(count)).encode() + b"}"


# What any JSON document may do; the sizes are what each parser's own limit lets through, or more.
JSON: dict[str, Made] = {
    "deep lists": lambda: b"[" * 100_000 + b"]" * 100_000,
    "deep lists, never closed": lambda: b"[" * 131_000,
    "deep objects": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "65 deep": lambda: b"[" * 65 + b"]" * 65,
    "a million keys": lambda: members(10**6, '"%d":%d'),
    "as many keys as may be": lambda: members(131_000, '"%d":"%d"'),
    "as many objects as may be": lambda: b"[" + b",".join(b'{"%x":{}}' % index for index in range(43_000)) + b"]",
    "as many empty lists as may be": lambda: b"[" + b"[]," * 65_000 + b"[]]",
    "as many floats as may be": lambda: b"[" + b"1.5e300," * 131_000 + b"1]",
    "100 MB": lambda: b'{"a":"' + b"x" * 100_000_000 + b'"}',
    "one text of 4 MiB": lambda: b'{"a":"' + b"x" * (4 * MIB - 20) + b'"}',
    "one wide text of 4 MiB": lambda: b'{"a":"' + b"x" * (4 * MIB - 20) + "\U0001f600".encode() + b'"}',
    "escapes only": lambda: b'{"a":"' + rb"\u4e00" * 699_000 + b'"}',
    "spaces only": lambda: b" " * (4 * MIB),
    "quotes only": lambda: b'"' * (4 * MIB),
    "a number of 4 million digits": lambda: b'{"a":' + b"9" * (4 * MIB - 10) + b"}",
    "900 numbers of 4300 digits": lambda: b"[" + b",".join([b"9" * 4300] * 900) + b"]",
    "1e400": lambda: b'{"a":1e400}',
    "-1e400": lambda: b'{"a":-1e400}',
    "NaN": lambda: b'{"a":NaN}',
    "Infinity": lambda: b'{"a":-Infinity}',
    "2^63": lambda: b'{"a":9223372036854775808}',
    "the same key twice": lambda: b'{"a":1,"a":1}',
    "the same key twice, once escaped": lambda: rb'{"a":1,"\u0061":1}',
    "byte order mark": lambda: b'\xef\xbb\xbf{"a":1}',
    "UTF-16": lambda: '{"a":1}'.encode("utf-16"),
    "bad UTF-8": lambda: b'{"a":"\xff"}',
    "overlong UTF-8": lambda: b'{"a":"\xc0\xaf"}',
    "half of a surrogate pair": lambda: rb'{"a":"\ud800"}',
    "half of a surrogate pair as a key": lambda: rb'{"\udfff":1}',
    "a surrogate in UTF-8": lambda: b'{"a":"\xed\xa0\x80"}',
    "nothing": lambda: b"",
    "zero bytes": lambda: b"\0" * 1000,
    "a comma too many": lambda: b'{"a":1,}',
    "a comment": lambda: b'{"a":1 /* one */}',
    "single quotes": lambda: b"{'a':1}",
    "two documents": lambda: b'{"a":1}{"a":1}',
    "true": lambda: b"true",
    "a list": lambda: b"[1,2]",
    "a text": lambda: b'"a"',
}


def tensors(count: int, name: str = "%d", dtype: str = "U8", shape: str = "[%d,0]") -> bytes:
    """A header of `count` empty tensors."""
    described = ', "'.join(
        f'{name % index}":{{"dtype":"{dtype}","shape":{shape.replace("%d", str(index % 4096))},"data_offsets":[0,0]}}'
        for index in range(count)
    )
    return f'{{"{described}}}'.encode()


HEADER: dict[str, Made] = {
    "as many tensors as may be": lambda: tensors(2**17),
    "one more": lambda: tensors(2**17 + 1),
    "as long names as may be": lambda: tensors(2**14, "%0900d"),
    "names of one rare character": lambda: tensors(16_000, "%d" + "a" * 900 + "\U0001f600"),
    "20 MiB and one byte": lambda: b"{" + b" " * (20 * MIB),
    "20 MiB of spaces": lambda: b"{" + b" " * (20 * MIB - 2) + b"}",
    "20 MiB of brackets": lambda: b'{"a":' + b"[" * (20 * MIB - 6),
    "as many shapes as may be": lambda: tensors(5000),
    "too many shapes": lambda: b"{" + b",".join(
        b'"%d":{"dtype":"U8","shape":[%d,0],"data_offsets":[0,0]}' % (index, index) for index in range(5000)
    ) + b"}",
    "a shape of 70,000 sizes": lambda: b'{"a":{"dtype":"U8","shape":[' + b"1," * 70_000 + b'1],"data_offsets":[0,1]}}',
    "2^53 bytes": lambda: b'{"a":{"dtype":"U8","shape":[9007199254740992],"data_offsets":[0,9007199254740992]}}',
    "a billion experts": lambda: b'{"a":{"dtype":"U8","shape":[1000000000,1000000000],"data_offsets":[0,0]}}',
    "90,000 facts": lambda: b'{"__metadata__":' + members(90_000, '"%d":""') + b"}",
    "facts twice": lambda: b'{"__metadata__":{},"__metadata__":{}}',
    "a million objects": lambda: members(10**6, '"%d":{}'),
}  # fmt: skip

INDEX: dict[str, Made] = {
    "370,000 tensors, the 397B model's as GPTQ": lambda: b'{"metadata":{"total_size":1},"weight_map":'
    + members(370_000, f'"model.layers.%d.mlp.experts.511.gate_proj.g_idx":"model-{1:05}-of-00094.safetensors"')
    + b"}",
    "a million files": lambda: b'{"weight_map":' + members(10**6, '"%d":"%d.safetensors"') + b"}",
    "65 MiB": lambda: b'{"weight_map":{"a":"' + b"x" * (65 * MIB) + b'.safetensors"}}',
    "two maps": lambda: b'{"weight_map":{"a":"a.safetensors"},"weight_map":{}}',
    "a name of 2 MiB": lambda: b'{"weight_map":{"' + b"a" * (2 * MIB) + b'":"a.safetensors"}}',
    "maps in maps": lambda: b'{"weight_map":' * 1000 + b"{}" + b"}" * 1000,
}  # fmt: skip


def calibration(header: bytes) -> bytes:
    """A calibration file with this header and nothing else."""
    content = b"MOECAL\r\n" + struct.pack("<Q", len(header)) + header
    return content + blake3(content).digest()


def calibrated(sections: list[Any], layers: int = 1, experts: int = 1, width: int = 32, kept: str = "all") -> bytes:
    """The header of a calibration that claims these sizes."""
    model = {"digest": "0" * 64, "tokenizer_digest": "0" * 64, "layers": layers, "experts": experts}
    model |= {"experts_per_token": 1, "hidden_size": width, "moe_intermediate_size": width}
    text = {"digest": "0" * 64, "window": 1, "windows": 1, "held_out": 2, "tokens": 2, "held_out_tokens": 1}
    facts = {"model": model, "text": text, "through": None, "expert_hessians": kept}
    return json.dumps({"format": "moecal", "version": 1, "facts": facts, "sections": sections}).encode()


def section(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "stored": 0, "size": size, "blake3": "0" * 64}


CALIBRATION: dict[str, Made] = {
    "268 million sections": lambda: calibration(calibrated([], 4096, 65536)),
    "as many sections as may be": lambda: calibration(
        calibrated([section(f"layer {n // 513} expert {n % 513}", 4224) for n in range(30_780)], 60, 512)
    ),
    "40,000 sections": lambda: calibration(calibrated([section(str(n), 1) for n in range(40_000)])),
    "widths of 2^31": lambda: calibration(calibrated([section("layer 0", 2**53)], 1, 1, 2**31 - 1, "none")),
    "a header of 2^63 bytes": lambda: b"MOECAL\r\n" + b"\xff" * 8 + b"\0" * 64,
    **{f"JSON: {case}": lambda made=made: calibration(made()) for case, made in JSON.items() if case != "100 MB"},
}

TOML: dict[str, Made] = {
    "a key of 60,000 parts": lambda: b"a" + b".a" * 60_000 + b"=1",
    "deep lists": lambda: b"a=" + b"[" * 60_000,
    "deep tables": lambda: b"a=" + b"{a=" * 40_000,
    "a table of 40,000 parts": lambda: b"[" + b".".join([b"a"] * 40_000) + b"]",
    "15,000 tables": lambda: b"".join(b"[a%d]\n" % index for index in range(12_000)),
    "a number of 100,000 digits": lambda: b"a=" + b"9" * 100_000,
    "bad UTF-8": lambda: b'format="\xff"',
    "two megabytes": lambda: b"#" * 2 * MIB,
    "overrides of 10,000 layers each": lambda: (
        b'format="affine2-g64"\n' + b'[[overrides]]\nlayers="0-9999"\nformat="affine4-g64"\n' * 2000
    ),
}


def tokenizer(**parts: Any) -> dict[str, Any]:
    """A small tokenizer.json with other parts."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return {"version": "1.0", "added_tokens": [], "model": model, **parts}


FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def split_by(pattern: str) -> Made:
    """A tokenizer that splits by a regular expression."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda: json.dumps(tokenizer(pre_tokenizer=split)).encode()


def nested(depth: int) -> Made:
    def made() -> bytes:
        part: dict[str, Any] = {"type": "NFC"}
        for _ in range(depth):
            part = {"type": "Sequence", "normalizers": [part]}
        return json.dumps(tokenizer(normalizer=part)).encode()

    return made


def bpe(vocabulary: dict[str, int], merges: Any = ()) -> bytes:
    model = {"type": "BPE", "vocab": vocabulary, "merges": list(merges)}
    return json.dumps(tokenizer(model=model), ensure_ascii=False).encode()


def realistic(count: int) -> bytes:
    """A vocabulary like those of today's models: `count` tokens, each merged of two."""
    letters = [chr(0x100 + index) for index in range(256)]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = []
    for index in range(count - 256):
        first, second = (
            letters[index % 256],
            f"{letters[index // 256 % 256]}{letters[index // 65536]}" if index >= 65536 else letters[index // 256],
        )
        if first + second not in vocabulary and second in vocabulary:
            vocabulary[first + second] = len(vocabulary)
            merges.append([first, second])
    return bpe(vocabulary, merges)


TOKENIZER: dict[str, Made] = {
    "a pattern of nested counts": split_by("(?:(?:a{1,1000}){1,1000}){1,1000}"),
    "a pattern of a long count": split_by("a{1,99999999999}"),
    "a pattern of 100,000 characters": split_by("a|" * 50_000),
    "a pattern of 2000 groups": split_by("(" * 1000 + ")" * 1000),
    "a pattern that is none": split_by("("),
    "a pattern that looks back for ever": split_by("(?<=(?:a|b)*)c"),
    "100 parts in parts": nested(100),
    "30 parts in parts": nested(30),
    "a unigram model": lambda: json.dumps(tokenizer(model={"type": "Unigram", "vocab": [["a" * MIB, 0.0]]})).encode(),
    "ids of 2^32 and up": lambda: bpe({"a": 2**32}),
    "ids below nothing": lambda: bpe({"a": -1}),
    "merges of what is not there": lambda: bpe({"a": 0}, [["a", "b"]]),
    "a token of 20 MiB": lambda: bpe({"a" * (20 * MIB): 0}),
    "a million tokens": lambda: bpe({f"{index:x}": index for index in range(10**6)}),
    "250,000 tokens and merges": lambda: realistic(250_000),
    "200,000 added tokens": lambda: json.dumps(
        tokenizer(added_tokens=[{"id": 3 + n, "content": f"<{n}>", "special": True, **FLAGS} for n in range(200_000)])
    ).encode(),
    "33 MiB": lambda: b" " * (33 * MIB),
    "no model": lambda: b'{"version":"1.0"}',
    **{f"JSON: {case}": made for case, made in JSON.items() if case != "100 MB"},
}
