"""Self-attention features of the source frames and where they are kept (paper, section 4.1).

The features of frame i at layer l and noise level t are the paper's phi_l(x_i^t).
"""
