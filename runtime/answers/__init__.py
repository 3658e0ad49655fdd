"""Between a model's tokens and a client: an answer read into thinking, content and calls, and kept to a grammar."""
