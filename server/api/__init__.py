"""The HTTP API: routes, the types of their bodies, and middleware; no torch."""
