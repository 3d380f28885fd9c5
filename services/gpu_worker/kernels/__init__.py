"""Triton kernels: one operation per file, with its definition in plain PyTorch beside it."""
