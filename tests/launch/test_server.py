"""The server's life: it ends with its context, and says why it did not start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch.comfyui.server import Server, ServerError

COMFYUI_STUB = "import sys; print('starting'); sys.exit('no such luck')"
DEAF_STUB = "import time; print('deaf', flush=True); time.sleep(60)"


def stub(folder: Path, code: str, patience: float = 30.0) -> Server:
    folder.joinpath("main.py").write_text(code)
    return Server(folder, folder / "work", folder / "output", folder / "server.log", patience)


def test_a_server_that_dies_shows_the_tail_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"(?s)exit code 1.*starting.*no such luck"),
        stub(tmp_path, COMFYUI_STUB),
    ):
        pass


def test_a_server_that_does_not_answer_is_stopped(tmp_path: Path) -> None:
    server = stub(tmp_path, DEAF_STUB, patience=1.0)
    with pytest.raises(ServerError, match=r"(?s)does not answer.*deaf"), server:
        pass
    assert server.process is not None
    assert server.process.poll() is not None


def test_the_server_ends_with_its_context_even_on_ctrl_c(tmp_path: Path) -> None:
    answer = "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n def do_GET(self):\n  "
    answer += "self.send_response(200); self.end_headers(); self.wfile.write(b'{}')\n"
    port = "import sys\nport = int(sys.argv[sys.argv.index('--port') + 1])\n"
    server = stub(tmp_path, answer + port + "h.HTTPServer(('127.0.0.1', port), H).serve_forever()")
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert server.process is not None
    assert server.process.poll() is not None


def test_nothing_is_written_into_comfyui(server: Server) -> None:
    assert server.input.is_dir()
    assert shutil.which(server.command()[0])
    assert str(server.comfyui) not in " ".join(server.command()[1:])
