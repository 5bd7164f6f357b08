"""What both engines share: budgets, guiding words, tower outputs seen before, the selection itself."""
