"""Truth: what a pack claims about itself, in which words, with which digests, and whether the bytes agree.

This room owns the manifest's schema, its canonical JSON, digests, verification and the errors that every command
reports. It promises that nothing is believed before it is checked. It knows nothing of how bytes are laid out, how
numbers are quantized, or how a model runs; it imports no other room.
"""
