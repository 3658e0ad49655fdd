"""`moe-run chat`: a conversation, at a terminal or through a pipe, on the engine and the loop of generate."""
