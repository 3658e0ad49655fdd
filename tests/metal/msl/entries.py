"""The C++ that is added to a translation: a function for each kernel that unpacks its arguments, and tables of them."""

from collections.abc import Iterator

from .syntax import OF_LANE, Instance, Kernel, Parameter
from .tokens import Place
from .translate import Translation

ROLES = {"buffer": "buffers", "threadgroup": "threadgroup_memory"}
DEMANDS = {
    "buffer": "a [[buffer]] parameter is a pointer or reference to device or constant memory",
    "threadgroup": "a [[threadgroup]] parameter is a pointer or reference to threadgroup memory",
}


def entries(translation: Translation, max_threads: int) -> str:
    lines = ["", "namespace msl_entries {"]
    rows = []
    for number, instance in enumerate(translation.instances):
        kernel = translation.kernel_of(instance)
        lines += entry(number, instance, kernel)
        rows.append(table_row(number, instance, kernel, max_threads))
    lines.append("}")
    lines.append(f'extern "C" const msl::Kernel msl_kernels[] = {{{", ".join([*rows, "{}"])}}};')
    lines.append(f'extern "C" const unsigned msl_kernel_count = {len(rows)};')
    return "\n".join(lines) + "\n"


def entry(number: int, instance: Instance, kernel: Kernel) -> Iterator[str]:
    yield located(instance.place)
    yield f"typedef msl::Parameters<decltype({instance.expression})> Of{number};"
    for i, parameter in enumerate(kernel.parameters):
        yield from demand(f"Of{number}::At<{i}>", parameter)
    values = ", ".join(argument(f"Of{number}::At<{i}>", each) for i, each in enumerate(kernel.parameters))
    yield f"static void run{number}([[maybe_unused]] const msl::Lane* lane) {{ {instance.expression}({values}); }}"
    rows = ", ".join(argument_row(f"Of{number}::At<{i}>", each) for i, each in memory_parameters(kernel))
    yield f"static const msl::Argument arguments{number}[] = {{{rows or '{}'}}};"


def demand(type_name: str, parameter: Parameter) -> Iterator[str]:
    if parameter.role not in ROLES:
        return
    yield located(parameter.place)
    yield f'static_assert(msl::Memory_argument<{type_name}>::is_{parameter.role}, "{DEMANDS[parameter.role]}");'


def argument(type_name: str, parameter: Parameter) -> str:
    if parameter.role in ROLES:
        return f"msl::Pointee<{type_name}>::at(lane->group->{ROLES[parameter.role]}[{parameter.index}])"
    owner = "lane" if parameter.role in OF_LANE else "lane->group"
    return f"msl::value<{type_name}>({owner}->{parameter.role})"


def memory_parameters(kernel: Kernel) -> list[tuple[int, Parameter]]:
    return [(i, each) for i, each in enumerate(kernel.parameters) if each.role in ROLES]


def argument_row(type_name: str, parameter: Parameter) -> str:
    facts = f"msl::Memory_argument<{type_name}>"
    size, alignment = f"sizeof({facts}::Plain)", f"alignof({facts}::Plain)"
    return f'{{"{parameter.name}", {parameter.index}, {facts}::space, {size}, {alignment}, {facts}::writable}}'


def table_row(number: int, instance: Instance, kernel: Kernel, max_threads: int) -> str:
    count, most = len(memory_parameters(kernel)), kernel.max_threads or max_threads
    return f'{{"{instance.name}", msl_entries::run{number}, msl_entries::arguments{number}, {count}, {most}}}'


def located(place: Place) -> str:
    return f'#line {place.line} "{place.file}"'
