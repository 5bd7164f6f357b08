"""Methods that learn on frozen features, against their baselines: the spaces, and a file for each kind of method."""
