"""The Hub, played by a server on this machine: what is downloaded, and what every refusal says."""

import errno
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants

import weights
from sd35.cli import main
from weights.hub import HubName

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves one folder as owner/model, and refuses as the real one does."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.downloads: list[str] = []
        self.files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The three kinds of request that are made: a listing, a file's metadata, a file or its start."""

    server: FakeHub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_listing = parts[:2] == ["api", "models"]
        owner, name, _, revision, *file = parts[2:] if is_listing else parts
        token = self.headers.get("Authorization")
        if (owner, name) == ("owner", "gated") and not is_listing:
            return self.refuse(403 if token else 401, "GatedRepo")
        if (owner, name) not in (("owner", "model"), ("owner", "gated")):
            return self.refuse(404 if token else 401, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if is_listing:
            siblings = [{"rfilename": file} for file in self.server.files]
            body = json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode()
            return self.send(200, body, {})
        path = self.server.root / "/".join(file)
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        body, headers = path.read_bytes(), {"ETag": f'"{"-".join(file)}"', "X-Repo-Commit": COMMIT}
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last or len(body)) + 1]
            return self.send(206, part, headers)
        if with_body:
            self.server.downloads.append("/".join(file))
        return self.send(200, body, headers, with_body=with_body)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"", {"X-Error-Code": code})

    def send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Send huggingface_hub to a server and a cache of the test's own; it reads its settings at import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def repository(tmp_path, parts, writers) -> Path:
    """Both layouts in one repository, as Stability's have them."""
    root = writers["official"](tmp_path / "repository", parts)
    writers["write"](
        root / "vae" / "diffusion_pytorch_model.safetensors", writers["to_diffusers"]("vae", parts["vae"])
    )
    writers["sharded"](
        root / "transformer", "diffusion_pytorch_model", writers["to_diffusers"]("mmdit", parts["mmdit"]), 2
    )
    return root


@pytest.fixture
def hub(tmp_path, repository, monkeypatch) -> Iterator[FakeHub]:
    server = FakeHub(repository)
    point_at(monkeypatch, server.url, tmp_path / "cache")
    yield server
    server.shutdown()
    server.server_close()


def test_a_part_downloads_its_own_file_alone(hub, parts):
    module = weights.load_mmdit("owner/model")
    assert hub.downloads == ["sd3.5_small.safetensors"]
    assert torch.equal(module.final_layer.linear.weight, parts["mmdit"]["final_layer.linear.weight"])
    weights.load_mmdit("owner/model")
    assert hub.downloads == ["sd3.5_small.safetensors"], "the second time it comes from the cache"


def test_the_vae_alone_does_not_download_the_whole_model(hub):
    weights.load_vae("owner/model")
    assert hub.downloads == ["vae/diffusion_pytorch_model.safetensors"]


def test_text_encoders_bring_their_tokenizers(hub, official):
    text = weights.load_textenc("owner/model", t5=False)
    assert {file.split("/")[0] for file in hub.downloads} == {"text_encoders", "tokenizer", "tokenizer_2"}
    assert not any("t5" in file for file in hub.downloads)
    expected = weights.load_textenc(official, t5=False).encode(["a cat"]).pooled
    assert torch.equal(text.encode(["a cat"]).pooled, expected)


def test_inspecting_downloads_no_weights(hub):
    report = weights.inspect("owner/model@v1")
    assert report.is_complete
    assert report.source == "owner/model@v1"
    assert not any(file.endswith(".safetensors") for file in hub.downloads)
    assert "not downloaded yet" in str(report)


def test_one_file_of_a_repository(hub):
    clip = weights.load_clip("owner/model/text_encoders/clip_g.safetensors@main")
    assert hub.downloads == ["text_encoders/clip_g.safetensors"]
    assert clip.config.activation == "gelu"
    with pytest.raises(
        weights.SourceError, match=r"owner/model has no file x\.safetensors; it has sd3\.5_small"
    ):
        weights.load_vae("owner/model/x.safetensors")


@pytest.mark.usefixtures("hub")
def test_without_a_network_the_cache_serves(monkeypatch, parts):
    weights.load_mmdit("owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    module = weights.load_mmdit("owner/model")
    assert torch.equal(module.pos_embed, parts["mmdit"]["pos_embed"])
    with pytest.raises(weights.MissingComponent, match=r"owner/model \(cached\) holds no text encoder T5"):
        weights.load_t5("owner/model")


@pytest.mark.usefixtures("hub")
def test_offline_and_never_downloaded(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        weights.OfflineError, match="not in the local cache and HF_HUB_OFFLINE is set: connect once"
    ):
        weights.load_mmdit("owner/model")


def test_no_connection(tmp_path, monkeypatch):
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(weights.OfflineError, match="there is no connection to the Hub"):
        weights.load_mmdit("owner/model")


@pytest.mark.usefixtures("hub")
def test_a_full_disk_is_not_called_a_lost_connection(monkeypatch):
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(
        weights.HubError, match=r"No space left on device.*make room, or set HF_HOME"
    ) as caught:
        weights.load_mmdit("owner/model")
    assert not isinstance(caught.value, weights.OfflineError)


@pytest.mark.usefixtures("hub")
def test_a_programming_error_is_not_called_a_lost_connection(monkeypatch):
    def broken(*_: object, **__: object) -> str:
        raise TypeError("unexpected keyword argument 'revision'")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(TypeError, match="unexpected keyword argument 'revision'"):
        weights.load_mmdit("owner/model")


REFUSALS = {
    "no token": ("owner/gated", None, weights.GatedError, "no access token was sent: accept .* set HF_TOKEN"),
    "licence": ("owner/gated", "hf_x", weights.LicenceError, "has not been given access: log in and accept"),
    "repository": ("owner/none", None, weights.UnknownRepoError, "there is no repository owner/none"),
    "revision": ("owner/model@v9", None, weights.UnknownRevisionError, "no revision 'v9': use a branch"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_each_refusal_says_what_to_do(hub, monkeypatch, kind):
    source, token, error, message = REFUSALS[kind]
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(error, match=message) as caught:
        weights.load_mmdit(source)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert hub.downloads == []


@pytest.mark.parametrize("command", [["generate", "a circle", "-m"], ["inspect"]])
@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.usefixtures("hub")
def test_each_refusal_is_one_line_on_the_command_line(monkeypatch, capsys, tmp_path, kind, command):
    source, token, _, message = REFUSALS[kind]
    monkeypatch.chdir(tmp_path)  # where a picture would go
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main([*command, source]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"sd35 {command[0]}: error: .*{message}.*\n", err)


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("owner/name", "owner/name", "main", None),
        ("owner/name@v1.0", "owner/name", "v1.0", None),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3", None),
        ("owner/na.me-3.5/a.safetensors", "owner/na.me-3.5", "main", "a.safetensors"),
        ("owner/name/text/a.safetensors@abc", "owner/name", "abc", "text/a.safetensors"),
    ],
)
def test_names_are_read(text, repo, revision, file):
    assert HubName.parse(text) == HubName(repo, revision, file)


@pytest.mark.parametrize(
    "text", ["name", "/abs/path", "./here", "../up", "a/b/c", "a/b.safetensors", "a/b@", "a b/c", "~/x", ""]
)
def test_what_is_no_name_is_not_taken_for_one(text):
    assert HubName.parse(text) is None
