"""Where an edit is to happen, found by the prompts alone."""
