"""The vision-token path: one adapter per architecture."""
