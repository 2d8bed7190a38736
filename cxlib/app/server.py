"""A page for this machine alone: drop a picture, choose two classes, see why the one and not the other."""

import base64
import json
import re
import threading
import warnings
from collections.abc import Mapping
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import torch
from PIL import Image

from cxlib import photographs, runtime
from cxlib.app import layers
from cxlib.app.shelf import Shelved, networks_here
from cxlib.classnames import chosen_classes, class_names
from cxlib.contrasts import CONTRASTS
from cxlib.datasets.images import as_shown, opened
from cxlib.explainers import EXPLAINERS, OF_TOKENS, ExplanationWarning
from cxlib.networks import Network

HOST = "127.0.0.1"
#: A picture's size at most, in bytes and in pixels.
BYTES, PIXELS = 32 << 20, 60_000_000
#: What explains a network in which no rule finds a layer with a map.
WITHOUT_LAYER = "fullgrad"
#: Nobody types for so many seconds.
PATIENCE = 30
PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Explainer:
    """What the page asks: which networks there are, and why one class of a picture and not another."""

    def __init__(self, folder: str | None, device: torch.device):
        self.shelf = networks_here(folder)
        self.device = device
        self.one_at_a_time = threading.Lock()
        self.network = lru_cache(2)(self._network)
        self.layers = lru_cache(self._layers)

    def _network(self, name: str) -> Network:
        return photographs.build(*self.shelf[name]).to(self.device)

    def _layers(self, name: str, size: tuple[int, ...]) -> list[layers.Layer]:
        return layers.offered(self.network(name), torch.zeros(1, *size, device=self.device))

    def choices(self) -> dict[str, Any]:
        """The networks and contrasts, and how large a picture may be."""
        return {"networks": list(self.shelf), "contrasts": [photographs.VERSUS, *CONTRASTS], "bytes": BYTES}

    def answer(self, content: bytes, asked: Mapping[str, str]) -> dict[str, Any]:
        """Why one class of a picture and not another: what was chosen, the numbers and the picture.

        Args:
            content: an image file's.
            asked: `name` of the file, `network`, and what is chosen of `target`, `versus` (indices), `explainer`,
                `contrast` and `layer`, which explainers that look at none pass over; the rest is chosen here.

        Raises:
            ValueError: something that there is not, or that cannot be explained.
        """
        runtime.check_name("network", asked.get("network", ""), self.shelf)
        with self.one_at_a_time, TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as cautions:
            warnings.simplefilter("always", ExplanationWarning)
            return self._answer(content, asked, Path(folder)) | {
                "cautions": [str(each.message) for each in cautions if each.category is ExplanationWarning]
            }

    def _answer(self, content: bytes, asked: Mapping[str, str], folder: Path) -> dict[str, Any]:
        shelved: Shelved = self.shelf[asked["network"]]
        model = self.network(asked["network"])
        name = re.sub(r"[^\w.-]+", "_", Path(asked.get("name", "")).name).lstrip(".")[-80:] or "picture"
        image = photographs.prepared(model, shelved.weights, None)(decoded(content, name, folder)).to(self.device)
        logits = photographs.logits(model, image)
        classes = class_names(model, len(logits), *shelved, None)
        indices = [str(k) for k in range(len(classes))]
        chosen = chosen_classes(logits, asked.get("target"), asked.get("versus"), indices)
        there = self.layers(asked["network"], tuple(image.shape))
        usual = photographs.default_explainer(model)
        explainer = asked.get("explainer") or (usual if there else WITHOUT_LAYER)
        contrast = asked.get("contrast") or photographs.VERSUS
        photographs.check([explainer], [contrast])
        offered = there if explainer in layers.TAKERS else []
        first = layers.readable(offered, min(image.shape[1:])).name if offered else None
        layer = (asked.get("layer") or first) if offered else None
        if layer:
            runtime.check_name("layer", layer, [each.name for each in offered])
        result = photographs.explained(model, image, logits, chosen, classes, [explainer], [contrast], layer)
        photographs.write(folder / "out", Path(name), result, asked["network"])
        names = photographs.spelled(classes, range(len(classes)))
        numbers = (folder / "out.json").read_text()
        return {
            "classes": list(names.values()),
            "explainers": [
                name
                for name in EXPLAINERS
                if (usual != "gradcam" or name not in OF_TOKENS) and (there or name not in layers.TAKERS)
            ],
            "target": chosen[0],
            "versus": chosen[1],
            "most_probable": [
                {"index": each["index"], "probability": each["probability"]}
                for each in json.loads(numbers)["most_probable"].values()
            ],
            "explainer": explainer,
            "contrast": contrast,
            "layers": [each._asdict() for each in offered],
            "layer": layer,
            "first_layer": first,
            "stem": Path(name).stem,
            "numbers": numbers,
            "picture": base64.b64encode((folder / "out.png").read_bytes()).decode(),
        }


def decoded(content: bytes, name: str, folder: Path) -> Image.Image:
    """A picture from a file's content.

    Raises:
        ValueError: it is no picture, or has too many pixels.
    """
    path = folder / "dropped" / name
    path.parent.mkdir()
    path.write_bytes(content)
    try:
        with opened(path) as image:
            width, height = image.size
        if width * height > PIXELS:
            raise ValueError(
                f"{name} has {width} x {height} pixels, more than {PIXELS // 10**6} million: make it smaller"
            )
        return as_shown(path)
    except ValueError as error:  # it names the file by its place on this machine
        raise ValueError(runtime.one_line(error).replace(f"{path.parent}/", "")) from error


class Handler(BaseHTTPRequestHandler):
    """One request; whoever asks from another page, or under another name, is refused."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        """The page, and what there is to choose."""
        path = urlsplit(self.path).path
        if not self._is_ours():
            self._refuse(403, "this page is for this machine alone")
        elif path in PAGE:
            name, kind = PAGE[path]
            self._send(200, (files("cxlib.app") / name).read_bytes(), kind)
        elif path == "/choices":
            self._send_json(200, self.server.explainer.choices())
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        """A picture to be explained."""
        address, length = urlsplit(self.path), self.headers.get("Content-Length", "")
        if not self._is_ours():
            return self._refuse(403, "this page is for this machine alone")
        if address.path != "/explain":
            return self._refuse(404, "there is no such page")
        if not length.isdecimal():
            return self._refuse(411, "a picture comes with its length")
        if int(length) > BYTES:
            return self._refuse(413, f"the picture has more than {BYTES >> 20} MiB: make it smaller")
        try:
            with runtime.told_of_full_memory():
                answer = self.server.explainer.answer(self.rfile.read(int(length)), dict(parse_qsl(address.query)))
        except (ValueError, OSError, FloatingPointError) as error:
            return self._refuse(400, runtime.one_line(error))
        return self._send_json(200, answer)

    def _is_ours(self) -> bool:
        """Whether the page itself asks: a name that others point to this machine, or another site, is not it."""
        ours = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in ours and (origin is None or origin.removeprefix("http://") in ours)

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # what was not read of the request is no request
        self._send_json(status, {"error": why})

    def _send_json(self, status: int, content: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: whoever looks at the page sees what went wrong."""


class Server(ThreadingHTTPServer):
    """Serves the page at `url` until it is shut down."""

    daemon_threads = True

    def __init__(self, explainer: Explainer, port: int):
        super().__init__((HOST, port), Handler)
        self.explainer = explainer

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"
