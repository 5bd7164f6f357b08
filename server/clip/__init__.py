"""Embeddings, labels and clusters on a CLIP or SigLIP model: the encoder, the methods, and the service around them."""
