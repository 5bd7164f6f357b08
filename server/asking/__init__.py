"""One way to ask a language model for a few words."""
