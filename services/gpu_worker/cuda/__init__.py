"""The engine's executor on a GPU: state in device memory, kernels in Triton, steps in captured graphs."""
