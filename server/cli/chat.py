"""Talk with a model about a picture or a clip; answers stream in as they are made.

Without a QUESTION it is a conversation; Ctrl-D or /quit ends it. The built-in demo model knows single questions only,
and so each is asked on its own. Examples:

    covervlm chat photo.jpg
    covervlm chat photo.jpg "What color is the bus?" --keep 64
    covervlm chat clip.mp4 "What happens?" --fps 1 --keep 256
    covervlm chat --url http://host:8000 photo.jpg
    covervlm chat photo.jpg "What is in it?" --schema thing.json --json
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covervlm.clients import APIStatusError, ChatAnswer, Client, Message, Video, assistant, user
from covervlm.server.cli.arguments import add_budget, budget_of, count, read_file, schema_file
from covervlm.server.cli.connect import add_server_arguments, connect
from covervlm.server.cli.errors import CommandError

HELP = """/keep N        keep N vision tokens of the picture from now on; /keep all prunes nothing
/method NAME   choose the pruning method
/image FILE    start over with another picture or clip
/quit          end the conversation, as Ctrl-D does; Ctrl-C stops an answer"""

CLIPS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"})
"""Files with these endings are videos; a GIF is a picture, unless --fps says how many of its frames are taken."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="a PNG, JPEG, WebP, GIF or BMP file, or a video"
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="ask only this one question")
    add_budget(parser, default="default: the server's own budget")
    parser.add_argument("--fps", type=float, metavar="RATE", help="frames to a second of a video (default: 32 in all)")
    parser.add_argument("--max-tokens", type=count, metavar="N", help="tokens of an answer (default: all that fit)")
    parser.add_argument("--temperature", type=float, metavar="T", default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--schema", type=schema_file, metavar="FILE", help="a JSON schema that answers follow")
    parser.add_argument("--forget", action="store_true", help="ask every question on its own")
    parser.add_argument("--json", action="store_true", help="print each answer as a line of JSON")
    add_server_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    picture = None if arguments.image is None else _medium(arguments.image, arguments.fps)
    sampling = {name: getattr(arguments, name) for name in ("max_tokens", "temperature", "schema")}
    with connect(arguments) as client:
        forgets = arguments.forget or client.models()[0].id == "demo"
        talk = Conversation(client, budget_of(arguments) | sampling, arguments.json, forgets, picture, arguments.fps)
        if arguments.question is not None:
            talk.ask(arguments.question)
        else:
            _converse(talk)


@dataclass
class Conversation:
    """The picture or clip, what has been said about it so far, and the options of the next question."""

    client: Client
    options: dict[str, Any]
    as_json: bool
    forgets: bool
    picture: bytes | Video | None
    fps: float | None = None
    messages: list[Message] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Ask, and print the answer as it comes. A question without a whole answer is left out of the conversation."""
        pictures = [self.picture] if self.picture is not None and not self.messages else []
        asked = [*self.messages, user(question, *pictures)]
        start, first = time.perf_counter(), None
        with self.client.stream_messages(asked, **self.options) as stream:
            for piece in stream:
                if first is None:
                    # Chat templates leave a space before the first word.
                    first, piece = time.perf_counter() - start, piece.lstrip()
                if not self.as_json:
                    print(piece, end="", flush=True)
        if not self.forgets:
            self.messages = [*asked, assistant(stream.answer.text)]
        self._report(stream.answer, first)

    def follow(self, command: str) -> bool:
        """Carry out a line that begins with /; False where it ends the conversation. Raises CommandError."""
        name, _, value = command.partition(" ")
        value = value.strip()
        if name == "/quit":
            return False
        if name == "/image" and value:
            self.picture, self.messages = _medium(Path(value), self.fps), []
        elif name == "/method" and value:
            self.options["method"] = value
        elif name == "/keep" and (value == "all" or (value.isdecimal() and int(value) > 0)):
            self.options |= {"keep_tokens": None, "keep_ratio": None, "coverage": None}
            self.options |= {"keep_ratio": 1.0} if value == "all" else {"keep_tokens": int(value)}
        else:
            commands = "/keep N, /keep all, /method NAME, /image FILE, /quit"
            raise CommandError(f"{command!r} is not a command; the commands are {commands}")
        return True

    def _report(self, answer: ChatAnswer, first: float | None) -> None:
        if self.as_json:
            report = dataclasses.asdict(answer) | {"text": answer.text.strip(), "first_token_seconds": first}
            print(json.dumps({name: value for name, value in report.items() if name != "raw"}), flush=True)
            return
        print()
        if sys.stderr.isatty():
            facts = [f"{image.kept} of {image.total} vision tokens" for image in answer.images]
            facts += [f"{answer.usage.prompt_tokens} prompt tokens"]
            facts += [] if first is None else [f"first token after {first * 1000:.0f} ms"]
            print(f"\x1b[2m{', '.join(facts)}\x1b[0m", file=sys.stderr)


def _medium(path: Path, fps: float | None) -> bytes | Video:
    """What the file holds. Raises CommandError where it cannot be read."""
    clip = path.suffix.lower() in CLIPS or (path.suffix.lower() == ".gif" and fps is not None)
    return Video(read_file(path), fps) if clip else read_file(path)


def _converse(talk: Conversation) -> None:
    """Read questions and commands from the terminal; or from a file, where the first failure ends the command."""
    person = sys.stdin.isatty()
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() its history and editing keys
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> " if person else "").strip()
        except EOFError:
            return
        try:
            if line.startswith("/"):
                if not talk.follow(line):
                    return
            elif line:
                talk.ask(line)
        except KeyboardInterrupt:
            print(" (stopped)")
            if not person:
                raise
        except (APIStatusError, CommandError) as error:
            if not person:
                raise
            print(error, file=sys.stderr)
