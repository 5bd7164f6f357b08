"""Between a peer's tests and a running server: a model of any name is the served one, and paths are OpenAI's."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_DROPPED = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "content-encoding"}


def start(server: str) -> str:
    """server: e.g. http://127.0.0.1:8000, which serves one model. Returns the proxy's own address."""
    client = httpx.Client(base_url=server, timeout=None)
    model = client.get("/v1/models").json()["data"][0]["id"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _forward(self) -> None:
            body = _with_model(self.rfile.read(int(self.headers.get("content-length", 0))), model)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _DROPPED}
            with client.stream(self.command, _path(self.path), content=body, headers=headers) as response:
                self.send_response(response.status_code)
                for name, value in response.headers.items():
                    if name not in _DROPPED:
                        self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for piece in response.iter_raw():
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = _forward

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{httpd.server_port}"


def _with_model(body: bytes, model: str) -> bytes:
    try:
        fields = json.loads(body)
    except ValueError:
        return body
    if isinstance(fields, dict) and isinstance(fields.get("model", ""), str):
        return json.dumps(fields | {"model": model}).encode()
    return body


def _path(path: str) -> str:
    """llama.cpp answers some paths with and without /v1."""
    bare = path.partition("?")[0]
    return (
        f"/v1{path}" if bare in ("/chat/completions", "/completions", "/embeddings", "/models", "/responses") else path
    )
