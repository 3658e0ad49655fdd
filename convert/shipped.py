"""The model that is shipped with moepack: a small MLX 4-bit checkpoint, and a question that it answers."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent / "demo"
CHECKPOINT = _HERE / "checkpoint"
QUESTION = _HERE / "question.json"
