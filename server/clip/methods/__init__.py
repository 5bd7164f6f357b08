"""What is learned on frozen features: one file for each method, and the contracts that they fulfil."""
