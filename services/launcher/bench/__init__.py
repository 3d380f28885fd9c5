"""`sapwood bench`: how fast a server answers under fixed workloads, and how fast the kernels are on this GPU."""
