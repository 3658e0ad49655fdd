"""The plan of a pack: every file, every size and every byte's place, known before the first byte is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from ..manifests import canonical, digest, names, schema, sums
from ..manifests.errors import MoepackError, UnsupportedError
from ..manifests.manifest import parse_manifest, seal
from .formats import AffineFormat
from .record import ExpertShape, RecordLayout
from .tensorheader import DTYPE_BITS, TensorSpec, render

__all__ = ["PackPlan", "TensorSpec", "expert_shape", "told_bytes"]

BLANK = "0" * 2 * digest.DIGEST_BYTES  # a digest not known yet


def expert_shape(model: schema.Model) -> ExpertShape:
    """The shape of every routed expert of `model`."""
    return ExpertShape(model.hidden_size, model.moe_intermediate_size)


def told_bytes(records: Sequence[RecordLayout], recipe: schema.Recipe) -> int:
    """Bytes of a manifest that say how experts are stored, in the recipe and of each layer; nothing else does."""
    layers = (_expert_layer(index, layout, _blank_digests(layout)) for index, layout in enumerate(records))
    return len(canonical.encode(recipe)) + sum(len(canonical.encode(layer)) for layer in layers)


@dataclass(frozen=True)
class PackPlan:
    """What a pack will hold. `records` has one layout per layer; `copied` are files to copy under their own names.

    `trunk` may be given in any order; it is kept in the order of the file: wider element types first, otherwise as
    given, so that every tensor is aligned. `trunk_formats` maps a quantized tensor's stem to its format's name.
    Raises ValueError for a plan that contradicts itself, UnsupportedError naming the rule if its manifest would break
    one, CorruptInputError if a file to copy cannot be read.
    """

    model: schema.Model
    records: tuple[RecordLayout, ...]
    trunk: tuple[TensorSpec, ...]
    trunk_formats: Mapping[str, str]
    copied: tuple[Path, ...]
    recipe: schema.Recipe
    source: schema.Source

    def __post_init__(self) -> None:
        ordered = sorted(self.trunk, key=lambda tensor: -DTYPE_BITS[tensor.dtype])
        object.__setattr__(self, "trunk", tuple(ordered))
        if len(self.records) != self.model.num_layers:
            raise ValueError(f"{len(self.records)} record layouts for {self.model.num_layers} layers")
        if any(layout.shape != expert_shape(self.model) for layout in self.records):
            raise ValueError("a record layout has other shapes than the model's experts")
        if len({tensor.name for tensor in self.trunk}) != len(self.trunk):
            raise ValueError("two trunk tensors have the same name")
        if any(path.name in names.OWN_FILES or not names.is_safe(path.name) for path in self.copied):
            raise ValueError("a file to copy has a name that a pack may not hold")
        self._check_manifest()

    def layer_file(self, index: int) -> str:
        """The name of layer `index`'s file, relative to the pack."""
        return names.layer_file(index)

    def layer_bytes(self, index: int) -> int:
        """Bytes of layer `index`'s file."""
        return self.records[index].stride * self.model.num_experts

    @cached_property
    def expert_bytes(self) -> int:
        """Bytes of all layer files."""
        return sum(map(self.layer_bytes, range(self.model.num_layers)))

    @cached_property
    def trunk_header(self) -> bytes:
        """The first bytes of the trunk file."""
        return render(self.trunk)

    @cached_property
    def trunk_bytes(self) -> int:
        """Bytes of the trunk file."""
        return len(self.trunk_header) + sum(tensor.size for tensor in self.trunk)

    @cached_property
    def digest_bytes(self) -> int:
        """Bytes of the record digests."""
        return digest.DIGEST_BYTES * self.model.num_experts * self.model.num_layers

    @cached_property
    def sums_bytes(self) -> int:
        """Bytes of the list of SHA-256 digests."""
        layers = map(self.layer_file, range(self.model.num_layers))
        return sums.size((*layers, names.TRUNK_FILE, names.DIGESTS_FILE, *self.copied_files))

    @cached_property
    def copied_bytes(self) -> int:
        """Bytes of the files that are copied."""
        return sum(file.size for file in self.copied_files.values())

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of the whole pack but its manifest."""
        return self.expert_bytes + self.trunk_bytes + self.digest_bytes + self.sums_bytes + self.copied_bytes

    @cached_property
    def manifest_bytes(self) -> int:
        """Bytes of the manifest, which digests do not change."""
        return len(self._blank_manifest)

    @cached_property
    def expert_bits_per_weight(self) -> float:
        """Stored bits per routed expert weight, padding included."""
        return self.expert_bytes * 8 / self._expert_weights

    @cached_property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the whole model: layer files and trunk."""
        return (self.expert_bytes + self.trunk_bytes) * 8 / (self._expert_weights + sum(map(self._weights, self.trunk)))

    @cached_property
    def copied_files(self) -> Mapping[str, schema.File]:
        """Every file to copy as it was when the plan was made, by name."""
        found = {path.name: digest.of_sized_file(path, follow_links=True) for path in self.copied}
        return {name: schema.File(name, size, blake3) for name, (size, blake3) in found.items()}

    @cached_property
    def identity(self) -> str:
        """The digest of all that decides a pack's bytes; work is resumed only under the same identity."""
        facts: dict[str, Any] = {
            "packer": version("moepack"),
            "version": schema.FORMAT_VERSION,
            "model": self.model,
            "formats": [_format_names(layout) for layout in self.records],
            "trunk": [[tensor.name, tensor.dtype, tensor.shape] for tensor in self.trunk],
            "trunk_formats": self.trunk_formats,
            "copied": {file.name: file.blake3 for file in self.copied_files.values()},
            "recipe": self.recipe,
            "source": self.source,
        }
        return digest.of_bytes(canonical.encode(facts)).hex()

    @cached_property
    def unhashed_sources(self) -> frozenset[str]:
        """The names of the checkpoint's weight files whose SHA-256 is not known yet."""
        return frozenset(file.name for file in self.source.files if file.sha256 == BLANK)

    def manifest(
        self,
        components: Mapping[int, Mapping[str, str]],
        files: Mapping[str, str],
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> schema.Manifest:
        """The manifest, given each layer's component digests and each other file's digest, both by name.

        `sources` gives the SHA-256 of those weight files of the checkpoint of which it was not known before.
        """
        sizes = {names.TRUNK_FILE: self.trunk_bytes, names.DIGESTS_FILE: self.digest_bytes}
        sizes |= {names.SUMS_FILE: self.sums_bytes}
        sizes |= {file.name: file.size for file in self.copied_files.values()}
        unsealed = schema.Manifest(
            format="moepack",
            version=1,
            requires=[],
            model=self.model,
            source=self._hashed_source(sources),
            recipe=self.recipe,
            layers=[self.layer(index, components[index]) for index in range(self.model.num_layers)],
            trunk=schema.Trunk(names.TRUNK_FILE, dict(self.trunk_formats)),
            digests=names.DIGESTS_FILE,
            files=[schema.File(name, sizes[name], files[name]) for name in sorted(sizes)],
            checksum="",
        )
        return seal(unsealed)

    def layer(self, index: int, digests: Mapping[str, str]) -> schema.ExpertLayer:
        """What the manifest says about layer `index`, given its component digests by name."""
        return _expert_layer(index, self.records[index], digests)

    def _hashed_source(self, sources: Mapping[str, str]) -> schema.Source:
        files = [replace(file, sha256=sources.get(file.name, file.sha256)) for file in self.source.files]
        return replace(self.source, files=files)

    @cached_property
    def _blank_manifest(self) -> bytes:
        """The manifest if all digests were zero."""
        components = {index: _blank_digests(layout) for index, layout in enumerate(self.records)}
        files = dict.fromkeys((names.TRUNK_FILE, names.DIGESTS_FILE, names.SUMS_FILE, *self.copied_files), BLANK)
        return canonical.encode(self.manifest(components, files))

    def _check_manifest(self) -> None:
        try:
            parse_manifest(self._blank_manifest, names.MANIFEST_FILE)
        except (MoepackError, ValueError) as error:  # ValueError: a number or name that JSON cannot hold
            raise UnsupportedError(f"this checkpoint does not fit into a pack: {error}") from error

    @property
    def _expert_weights(self) -> int:
        model = self.model
        return 3 * model.hidden_size * model.moe_intermediate_size * model.num_experts * model.num_layers

    def _weights(self, tensor: TensorSpec) -> int:
        stem, _, role = tensor.name.rpartition(".")
        count = math.prod(tensor.shape)
        if stem not in self.trunk_formats:
            return count
        return count * 32 // AffineFormat.parse(self.trunk_formats[stem]).bits if role == "weight" else 0


def _expert_layer(index: int, layout: RecordLayout, digests: Mapping[str, str]) -> schema.ExpertLayer:
    components = [schema.Component(c.name, c.offset, c.size, digests[c.name]) for c in layout.components]
    return schema.ExpertLayer(names.layer_file(index), layout.stride, _format_names(layout), components)


def _blank_digests(layout: RecordLayout) -> dict[str, str]:
    return dict.fromkeys((component.name for component in layout.components), BLANK)


def _format_names(layout: RecordLayout) -> dict[Any, str]:
    return {projection: format_.name for projection, format_ in layout.formats.items()}
