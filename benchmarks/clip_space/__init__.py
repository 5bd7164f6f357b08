"""The image-text space of a dual encoder: sets of single-object pictures, and how well labels and clusters fit them."""
