"""moepack: verified 2-bit expert-major packs of mixture-of-experts models, and an engine that streams them.

The rooms (`convert`, `quantize`, `layout`, `runtime`, `manifests`) live at the top of the repository and are
linked here so that they share one import name. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
