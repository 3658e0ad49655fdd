"""What outlives one request of a sequence: its state at a position, kept, found again, and continued from."""
