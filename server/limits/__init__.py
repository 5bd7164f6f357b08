"""Limits on callers: API keys, host names, and the budget of vision tokens under load."""
