"""Bytes: record formats, offsets and alignment, crash-safe writing, and reading back.

This room owns where every byte of a pack lies. It promises that a published file is complete and that a read returns
exactly the bytes asked for or an error. It knows nothing of quantizers or models, and imports neither torch nor
anything above `manifests`.
"""
