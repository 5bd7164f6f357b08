"""The dual encoder, and how many callers share it."""
