"""The quality of a synthetic set beside real photos, in the features of one encoder.

Each measure is a file; a function takes features as torch tensors, on the CPU or a GPU, and works in blocks: nothing of
size N x N is ever held.
"""
