"""A process beside the server that no attack touches: what delays its answers is the machine, not the server.

It also serves the picture that the well-behaved caller sends by its URL. Prints its port.
"""

import asyncio
import io

from PIL import Image

from tests.e2e.attack.lifeline import end_with_parent


def _picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((96, 96), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


async def main() -> None:
    picture = _picture()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            body = picture if b" /picture" in request else b"ok"
            writer.write(head % len(body) + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main())
