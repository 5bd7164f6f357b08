"""Parts of the GPU benchmark: each measures one thing on a CUDA device, or tiny in Triton's interpreter, as a table."""
