"""`moe-run`: from a pack to tokens.

This room owns the model's mathematics, expert streaming, kernels and generation. It reads packs through `manifests`
and `layout` and knows nothing of checkpoints or quantizers. It imports neither torch nor transformers.
"""
