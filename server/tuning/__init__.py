"""How few vision tokens do on one's own questions: which cells to ask, what answers show, what to recommend."""
