"""For the interpreters of a mutated tree: its own moepack is imported, not the one that is installed for editing."""

import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_moepack"]
