"""How much of a model a pack keeps: divergence on text, tool calls, weight error; see `evaluation` for the whole."""
