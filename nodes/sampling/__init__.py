"""TokenFlow Sampler and Apply TokenFlow."""
