"""Numbers: packing codes, the quantizers, and error measures.

This room owns the arithmetic that turns weights into codes. It promises the same bytes on every machine, thread count
and instruction set. It knows nothing of files, checkpoints or models; of `layout` it uses the formats only.
"""
