"""What both engines must know of a model: one file per architecture, and its adapter for transformers."""
