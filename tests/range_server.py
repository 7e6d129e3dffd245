"""Serves a folder with byte ranges, as every store of COGs does: `python range_server.py FOLDER` prints its port.

A process of its own: rasterio holds Python's lock while GDAL waits for an answer.
"""

import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranged(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if not asked or not file.is_file():
            return super().do_GET()
        data = file.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *words: object) -> None:
        pass


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranged, directory=sys.argv[1])) as server:
        print(server.server_address[1], flush=True)  # noqa: T201
        server.serve_forever()
