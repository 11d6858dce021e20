"""Weights in few bits: GGUF's blocks, fp8 with and without scales, int8."""
