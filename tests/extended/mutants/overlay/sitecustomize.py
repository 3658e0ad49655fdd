"""For the interpreters of a mutated tree: its own moepack is imported, not the one that is installed for editing.

Where MOEPACK_IMPORTED names a file, the files of all modules that were imported are added to it in the end.
"""

import atexit
import os
import sys
from pathlib import Path

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_moepack"]


def tell(path: str) -> None:
    found = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    with Path(path).open("a") as file:
        file.writelines(f"{os.path.realpath(name)}\n" for name in found if name)


if to := os.environ.get("MOEPACK_IMPORTED"):
    atexit.register(tell, to)
