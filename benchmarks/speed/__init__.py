"""Speed of a served model: a server of its own on the loopback interface, and streamed questions with their times."""
