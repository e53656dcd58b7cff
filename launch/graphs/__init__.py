"""What the nodes of an API prompt are for: where its clip, its prompts and its seeds are set."""
