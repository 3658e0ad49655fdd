"""`moe-pack`: from a published checkpoint to a pack.

This room owns reading checkpoints (their naming, dtypes and quirks), the model families, and the pipeline that runs
quantizers over them into the layout's writer. It knows nothing of inference.
"""
