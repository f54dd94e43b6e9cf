"""Learned losses that are shared: by the hub's client against a hub on this machine; the zoo."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import metaloss
from metaloss import LearnedLoss, links, load_loss
from metaloss.config.registry import UnknownComponentError
from metaloss.errors import InputError
from metaloss.representations.saved.folder import ZOO

COMMIT = 40 * "a"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks to make a repository, commit files and give them."""

    files: dict[str, bytes]

    @property
    def url(self):
        return "http://{}:{}".format(*self.server.server_address)

    def _answer(self, content=b"", code=200, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _say(self, *rows, **content):
        said = json.dumps(content if content else rows)
        self._answer(said.encode(), Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self._say(url=f"{self.url}/me/loss")
        elif self.path.endswith("/preupload/main"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]
            self._say(files=modes)
        elif "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._say(commitUrl=f"{self.url}/me/loss/commit/{COMMIT}", commitOid=COMMIT)
        else:  # of the card's heading
            self._say(errors=[], warnings=[])

    def do_GET(self):
        if "/tree/" in self.path:
            listed = [(name, len(content)) for name, content in self.files.items()]
            self._say(*({"type": "file", "path": p, "size": n, "oid": COMMIT} for p, n in listed))
        elif self.path.startswith("/api/models/me/loss"):
            listed = [{"rfilename": name} for name in self.files]
            self._say(id="me/loss", sha=COMMIT, siblings=listed, tags=[], private=False)
        elif (name := re.sub(r"^/me/loss/resolve/\w+/", "", self.path)) in self.files:
            content = self.files[name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(content, ETag=etag, X_Repo_Commit=COMMIT)
        else:
            self._answer(code=404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The files of the repository me/loss on a hub of this machine."""
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()  # whose proxies are those of the environment that was
    yield handler.files
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def test_a_loss_is_pushed_and_comes_back_with_the_same_numbers(hub, tmp_path):
    loss = LearnedLoss(metaloss.REPRESENTATIONS["nn"](), links.probabilities, step=3)
    assert loss.push_to_hub("me/loss", token="hf_none").endswith(f"/me/loss/commit/{COMMIT}")
    assert hub.keys() == {"README.md", "config.json", "model.safetensors"}
    found = LearnedLoss.from_pretrained("me/loss", cache_dir=tmp_path)
    logits, labels = torch.randn(5, 4), torch.randint(4, (5,))
    assert found(logits, labels) == loss(logits, labels)
    assert found.step == 3
    assert not any(p.requires_grad for p in found.parameters())
    hub.clear()  # what was fetched once is in the library's cache
    again = LearnedLoss.from_pretrained("me/loss", cache_dir=tmp_path, local_files_only=True)
    assert again(logits, labels) == loss(logits, labels)


def test_a_folder_is_loaded_as_a_repository_is(tmp_path):
    loss = LearnedLoss(metaloss.REPRESENTATIONS["taylor"](), links.values)
    loss.save_pretrained(tmp_path)
    found = LearnedLoss.from_pretrained(str(tmp_path))
    outputs, values = torch.randn(5, 1), torch.randn(5, 1)
    assert found(outputs, values) == loss(outputs, values)


def test_a_repository_can_run_no_code(hub, tmp_path):
    """Its config names a registered loss, and nothing else that could be called."""
    LearnedLoss(metaloss.REPRESENTATIONS["taylor"]()).push_to_hub("me/loss", token="hf_none")
    config = json.loads(hub["config.json"])
    hub["config.json"] = json.dumps({**config, "representation": "os.mkdir"}).encode()
    with pytest.raises(UnknownComponentError, match=r"no 'os\.mkdir' in representations"):
        LearnedLoss.from_pretrained("me/loss", cache_dir=tmp_path)


def test_without_its_library_the_hub_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "metaloss.representations.saved.hub", raising=False)
    expected = r"^the hub needs huggingface_hub: install metaloss\[hub\]$"
    with pytest.raises(InputError, match=expected):
        LearnedLoss.from_pretrained("me/loss")


# --- the zoo ---

NAMES = sorted(path.name for path in ZOO.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_the_zoo_pushes_towards_the_target(name):
    loss = load_loss(f"zoo:{name}")
    if loss.link is links.values:  # regression: below the target upwards, above it downwards
        outputs = torch.tensor([[0.1], [0.9]], requires_grad=True)
        loss(outputs, torch.full((2, 1), 0.5)).backward()
        assert outputs.grad[0] < 0 < outputs.grad[1]
    else:
        logits = torch.zeros(1, 10, requires_grad=True)
        loss(logits, torch.tensor([3])).backward()
        assert logits.grad.argmin() == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_the_zoo_has_a_card_with_all_that_it_promises(name):
    card = (ZOO / name / "README.md").read_text()
    for heading in ("Its curve", "Its formula", "On another model"):
        assert f"\n## {heading}\n" in card
    assert (ZOO / name / "curve.png").is_file()
    assert f'metaloss.load_loss("zoo:{name}")' in card
    assert load_loss(f"zoo:{name}").provenance["git_commit"]


def test_a_run_starts_from_a_loss_of_the_zoo():
    found = metaloss.REPRESENTATIONS["pretrained"](path="zoo:digits_mlp")
    there = load_loss("zoo:digits_mlp").representation
    assert all(a.equal(b) for a, b in zip(found.parameters(), there.parameters(), strict=True))


def test_a_name_that_is_not_in_the_zoo_is_one_line_with_the_nearest():
    with pytest.raises(InputError) as error:
        load_loss("zoo:digit_mlp")
    expected = (
        f"no loss 'digit_mlp' in the zoo; did you mean 'digits_mlp'? · known: {', '.join(NAMES)}"
    )
    assert str(error.value) == expected
