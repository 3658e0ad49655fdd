"""Many requests at once: who computes when, what they share, and how clients hear of it."""
