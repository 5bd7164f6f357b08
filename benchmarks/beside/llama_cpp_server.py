"""llama.cpp's server as xllamacpp's wheel brings it, in the peers' environment.

    python llama_cpp_server.py LANGUAGE.gguf TOWER.gguf THREADS

Prints its URL, and ends with its standard input.
"""

import sys

from xllamacpp import CommonParams, Server

ANSWERS = 32
"""Answers at once, and slots for them."""
COLUMNS = 1024
"""Tokens of prompt and answer."""


def main() -> None:
    language, tower, threads = sys.argv[1:]
    options = CommonParams()
    options.model.path, options.mmproj.path = language, tower
    options.n_parallel, options.n_ctx = ANSWERS, ANSWERS * COLUMNS
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = int(threads)
    options.cache_ram_mib = 0  # no request here repeats another
    server = Server(options)
    print(f"llama.cpp serves {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
