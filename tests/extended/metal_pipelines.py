"""Every kernel of every build through Metal's compiler, and a pipeline of each. `make pipelines`

On a Mac with the extra [metal] that is Apple's compiler and the machine's GPU; elsewhere it is the stand-in of
tests/metal, which proves nothing about Apple's. A source that is refused is a failure; so is a pipeline, unless the
device is of a family that the backend refuses anyway, as GitHub's virtual machines have: then it is only told.
No run on a Mac has been seen yet.
"""

import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from metal import standin
from metal.builds import called, every_build
from rich.console import Console

from moepack.manifests.errors import UnsupportedError
from moepack.runtime.backends.metal.device import Device, Library, Pipeline
from moepack.runtime.backends.metal.library import KERNELS, Build

FAMILIES = ("Apple6", "Apple7", "Apple8", "Apple9", "Metal3")
out = Console(highlight=False, width=160, soft_wrap=True)


class Lesser(Device):
    """The device, whether or not our kernels could run on it: what it compiles is worth knowing."""

    def _require(self) -> None:
        pass


@dataclass
class Survey:
    """What became of the builds."""

    device: Device
    sources: int = 0
    pipelines: int = 0
    refused_sources: list[str] = field(default_factory=list)
    refused_pipelines: list[str] = field(default_factory=list)

    def build(self, build: Build) -> None:
        """Compile one, and make its pipelines."""
        start = time.perf_counter()
        try:
            library = self.device.library(build.source, build.file)
        except UnsupportedError as refused:
            self.refused_sources.append(f"{called(build)}: {refused}")
            return out.print(f"{called(build)}: SOURCE REFUSED: {refused}", markup=False)
        self.sources += 1
        out.print(f"{called(build)}: compiled in {time.perf_counter() - start:.2f} s", markup=False)
        for name, threads in KERNELS[build.file].items():
            self._pipeline(library, name, threads)

    def _pipeline(self, library: Library, name: str, threads: int) -> None:
        start = time.perf_counter()
        try:
            pipeline = library.pipeline(name, threads)
        except UnsupportedError as refused:
            self.refused_pipelines.append(str(refused))
            return out.print(f"  {name}: PIPELINE REFUSED: {refused}", markup=False)
        self.pipelines += 1
        out.print(f"  {name}: {time.perf_counter() - start:.2f} s, {facts(pipeline)}", markup=False)


def facts(pipeline: Pipeline) -> str:
    """What only the device's compiler knows. The stand-in does not know how much threadgroup memory is static."""
    state = pipeline.state
    memory = "unknown" if standin.RUNS else f"{state.staticThreadgroupMemoryLength()} bytes"
    most, lanes = state.maxTotalThreadsPerThreadgroup(), state.threadExecutionWidth()
    return f"{pipeline.threads} of at most {most} threads, SIMD groups of {lanes}, threadgroup memory {memory}"


def open_device() -> tuple[Device, str | None]:
    """The device, and why the backend would refuse it, if so. Exits where there is none at all."""
    standin.install()
    try:
        return Device(), None
    except UnsupportedError as refused:
        sentence = str(refused)
    try:
        return Lesser(), sentence
    except UnsupportedError as refused:
        raise SystemExit(f"nothing can be compiled: {refused}") from None


def describe(device: Device, refusal: str | None) -> None:
    """What this runs on."""
    if standin.RUNS:
        out.print("THE STAND-IN, on this CPU. This says nothing about Apple's compiler or any GPU.")
    else:
        out.print(f"A REAL DEVICE, on macOS {platform.mac_ver()[0]}, pyobjc-core {version('pyobjc-core')}.")
    families = [name for name in FAMILIES if device.metal.supportsFamily_(getattr(bindings(), f"MTLGPUFamily{name}"))]
    out.print(f"device: {device.name}; of the families {', '.join(FAMILIES)} it has {', '.join(families) or 'none'}")
    out.print(f"largest buffer {device.most_in_buffer} bytes, working set {device.working_set} bytes")
    if refusal:
        out.print(f"the backend refuses it: {refusal}\npipelines that fail are told, and are no failure", markup=False)


def bindings() -> Any:
    """`Metal`, real or not."""
    import Metal

    return Metal


def owners(device: Device) -> None:
    """Owners of what `new...` methods gave: 2 is PyObjC's leak, which matters only for what is made per token."""
    library = device.metal.newLibraryWithSource_options_error_("kernel void nothing() {}", None, None)[0]
    made = {"buffer": device.buffer(16, "owners").buffer, "event": device.event().event, "library": library}
    out.print("retainCount: " + ", ".join(f"{name} {thing.retainCount()}" for name, thing in made.items()))


def main() -> None:
    """Survey all builds; exit 1 if the compiler refused a source, or a device that should run it a pipeline."""
    device, refusal = open_device()
    describe(device, refusal)
    owners(device)
    survey = Survey(device)
    for build in every_build():
        survey.build(build)
    refused = [*survey.refused_sources, *survey.refused_pipelines]
    out.print(f"{survey.sources} sources compiled, {survey.pipelines} pipelines made; {len(refused)} refusals")
    for sentence in refused:
        out.print(f"  {sentence}", markup=False)
    failed = survey.refused_sources or (survey.refused_pipelines and refusal is None)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
