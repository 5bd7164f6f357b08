"""What every room of the server knows: values, errors, protocols and the caller; neither torch nor FastAPI."""
