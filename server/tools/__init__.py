"""Functions that an answer may call: how calls are written, asked for, held to and read."""
