"""How consistent a clip is, and the optical flow that tells."""
