"""Answers to pruned requests, compared with the unpruned model while nobody waits."""
