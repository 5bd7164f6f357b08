"""Fuzzes the parsers of strangers' bytes, guided by the coverage of their Python code; see `make test-fuzz`.

    python tests/fuzz/run.py [--seconds 8] [NAME ...]

Each harness, a file `fuzz_NAME.py`, has a process of its own, starts from `corpus/NAME` and ends at its first find:
bytes that raise what the harness does not expect, or take longer or more memory than `bounds.py` allows. They go to
`results/fuzz/`. Once that is mended, the file belongs into the corpus, which `test_corpus.py` replays.
"""

import argparse
import gc
import importlib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FunctionType

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FINDS = ROOT / "results" / "fuzz"
LONGEST = 4096
_STATS = re.compile(r"#(\d+)\s.* cov: (\d+) .* corp: (\d+)")


def names() -> list[str]:
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def fuzz(name: str, seconds: int) -> None:
    """In this process, which libFuzzer ends."""
    import atheris

    sys.path.append(str(ROOT))  # at the end, where the folder `kernels` shadows nothing
    bounded = importlib.import_module("tests.fuzz.bounds").bounded
    harness = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    # What is imported already, because instrumenting all imports takes longer than fuzzing.
    functions = [each for each in gc.get_objects() if type(each) is FunctionType and _of(each, harness.TRACED)]
    plain = [function.__code__ for function in functions]
    for function in functions:
        atheris.instrument_func(function)
    traced = [function.__code__ for function in functions]

    def at_full_speed(data: bytes) -> None:
        """A loop takes ten times as long while its branches are counted."""
        _give(functions, plain)
        try:
            harness.target(data)
        finally:
            _give(functions, traced)

    with tempfile.TemporaryDirectory() as found:
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=4096"]
        options += [f"-artifact_prefix={FINDS}/{name}-", found, str(HERE / "corpus" / name)]
        atheris.Setup([sys.argv[0], *options], lambda data: bounded(harness.target, data, at_full_speed))
        atheris.Fuzz()


def _of(function: FunctionType, modules: tuple[str, ...]) -> bool:
    return str(function.__module__).startswith(modules)


def _give(functions: list[FunctionType], codes: list[CodeType]) -> None:
    for function, code in zip(functions, codes, strict=True):
        function.__code__ = code


def run(name: str, seconds: int) -> bool:
    """In a process of its own; whether nothing was found."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--within", name]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    *_, last = _STATS.findall(done.stderr) or [("0", "0", "0")]
    print(f"{name}: {last[0]} runs, {last[1]} edges, {last[2]} files", "" if not done.returncode else "- FOUND:")
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:])
    return not done.returncode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=names(), metavar="NAME")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        fuzz(options.names[0], options.seconds)
        return
    FINDS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        clean = list(pool.map(lambda name: run(name, options.seconds), options.names))
    sys.exit(not all(clean))


if __name__ == "__main__":
    main()
