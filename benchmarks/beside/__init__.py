"""Servers of one model, ours and other people's, each behind one contract: started, asked over a stream, stopped."""
