"""Videos read and written a few frames at a time."""
