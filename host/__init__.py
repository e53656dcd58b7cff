"""Everything that knows ComfyUI's internals: patching, conditionings, memory, progress."""
