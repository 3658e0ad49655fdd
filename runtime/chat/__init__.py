"""`moe-run chat`: a conversation at a terminal or through a pipe, on the engine, the loop and the readers of the rest."""
