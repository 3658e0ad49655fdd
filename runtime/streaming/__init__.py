"""Between expert records on disk and the engine that computes with them; `experts.ExpertStream` is the door."""
