"""What a name leads to, and what is said where it leads nowhere."""

import json

import pytest
import torch

import weights
from weights import FileFormatError, SourceError, resolve
from weights.source import TINY, open_source


def test_official_folder(official):
    found = resolve(official)
    files = {part: component.files for part, component in found.components.items()}
    assert files == {
        "mmdit": ["sd3.5_small.safetensors"],
        "vae": ["sd3.5_small.safetensors"],
        "clip_l": ["text_encoders/clip_l.safetensors"],
        "clip_g": ["text_encoders/clip_g.safetensors"],
        "t5": ["text_encoders/t5xxl_fp16.safetensors"],
    }
    assert found.tokenizers == {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}
    assert {component.layout for component in found.components.values()} == {"official"}


def test_diffusers_folder_leaves_variants_alone(diffusers):
    found = resolve(diffusers)
    assert found.components["vae"].files == ["vae/diffusion_pytorch_model.safetensors"]
    assert found.components["clip_l"].files == ["text_encoder/model.safetensors"]
    assert len(found.components["mmdit"].files) == 2
    assert found.components["mmdit"].layout == "diffusers"


def test_a_variant_alone_is_taken(tmp_path, writers, parts):
    writers["write"](tmp_path / "text_encoder" / "model.fp16.safetensors", parts["clip_l"])
    assert resolve(tmp_path).components["clip_l"].files == ["text_encoder/model.fp16.safetensors"]


def test_all_in_one_file(all_in_one):
    found = resolve(all_in_one)
    assert set(found.components) == {"mmdit", "vae", "clip_l", "clip_g", "t5"}
    assert {component.prefix for component in found.components.values()} >= {
        "text_encoders.t5xxl.transformer."
    }
    assert found.tokenizers == {}


def test_the_plain_file_wins_over_one_with_everything(tmp_path, writers, parts):
    prefixed, write = writers["prefixed"], writers["write"]
    write(tmp_path / "sd3_medium_incl_clips.safetensors", prefixed(parts, "mmdit", "vae", "clip_l", "clip_g"))
    write(tmp_path / "sd3_medium.safetensors", prefixed(parts, "mmdit", "vae"))
    found = resolve(tmp_path)
    assert found.components["mmdit"].files == ["sd3_medium.safetensors"]
    assert found.components["clip_l"].files == ["sd3_medium_incl_clips.safetensors"]


def test_two_equal_claims_must_be_told_apart(tmp_path, writers, parts):
    for name in ("canny", "depth"):
        writers["write"](tmp_path / f"{name}.safetensors", parts["controlnet"])
    with pytest.raises(
        SourceError, match=r"more than one ControlNet \(canny\.safetensors, depth\.safetensors\)"
    ):
        weights.load_controlnet(tmp_path)
    assert weights.load_controlnet(tmp_path / "depth.safetensors") is not None


def test_only_what_is_asked_for_is_read(tmp_path, writers, parts):
    root = writers["official"](tmp_path, parts)
    (root / "text_encoders" / "clip_l.safetensors").write_bytes(b"garbage")
    assert weights.load_mmdit(root) is not None
    with pytest.raises(FileFormatError, match=r"clip_l\.safetensors is not a safetensors file"):
        weights.load_textenc(root)


def test_tiny_is_the_embedded_model_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert open_source("tiny").name == "tiny"
    assert TINY.parent.name == "weights"
    with pytest.raises(SourceError, match="tiny is no model"):
        resolve("./tiny")


@pytest.mark.parametrize("kind", ["empty", "text", "pickles", "other tensors", "a LoRA"])
def test_a_folder_that_is_no_model(tmp_path, writers, kind):
    expected = {
        "empty": r"is no model: no \.safetensors file in it.*it is empty",
        "text": "it has 1 other files",
        "pickles": r"only as pickles \(transformer/model\.bin\), which can run code",
        "other tensors": r"no part of a Stable .* model: a\.safetensors is 1 tensors of another model",
        "a LoRA": r"no part of a Stable .* model: lora\.safetensors is a LoRA or another adapter",
    }
    if kind == "text":
        (tmp_path / "readme.md").write_text("hello")
    elif kind == "pickles":
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer" / "model.bin").write_bytes(b"\x80\x02")
    elif kind == "other tensors":
        writers["write"](tmp_path / "a.safetensors", {"weight": torch.ones(2)})
    elif kind == "a LoRA":
        writers["write"](tmp_path / "lora.safetensors", {"lora_A.weight": torch.ones(2)})
    with pytest.raises(SourceError, match=expected[kind]):
        weights.load_mmdit(tmp_path)


def test_shards_that_are_missing_are_named(tmp_path, writers, parts):
    folder = tmp_path / "text_encoder_3"
    writers["sharded"](folder, "model", parts["t5"], 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"not there: text_encoder_3/model-00002-of-00002\.safetensors"):
        weights.load_t5(tmp_path)


def test_shards_of_another_download_are_told(tmp_path, writers, parts):
    folder = tmp_path / "text_encoder_3"
    writers["sharded"](folder, "model", parts["t5"], 2)
    writers["write"](folder / "model-00002-of-00002.safetensors", {"shared.weight": torch.ones(2)})
    with pytest.raises(FileFormatError, match=r"disagree about .* tensors"):
        weights.load_t5(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index(tmp_path, content):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"index\.json"):
        weights.load_vae(tmp_path)


@pytest.mark.parametrize(
    "name", ["nothing", "folder/model.safetensors", "/absolute/x.safetensors", "a/b/c/d"]
)
def test_a_name_that_leads_nowhere_never_reaches_the_network(monkeypatch, name):
    monkeypatch.setattr("weights.source.open_repository", lambda name: pytest.fail("asked the Hub"))
    with pytest.raises(SourceError, match="there is no file or folder"):
        weights.load_vae(name)


def test_a_mistyped_local_path_is_not_sent_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr("weights.source.open_repository", lambda name: pytest.fail("asked the Hub"))
    with pytest.raises(SourceError, match="there is no file or folder models/sd35"):
        weights.load_vae("models/sd35")


def test_a_config_that_is_no_json(tmp_path, writers, parts):
    path = writers["write"](tmp_path / "clip_l.safetensors", parts["clip_l"])
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(FileFormatError, match=r"config\.json should hold a JSON object and holds a list"):
        weights.load_clip(path)


def test_hidden_files_are_not_looked_at(tmp_path, writers, parts):
    writers["write"](tmp_path / "vae.safetensors", parts["vae"])
    (tmp_path / "._vae.safetensors").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert resolve(tmp_path).components["vae"].files == ["vae.safetensors"]
    with pytest.raises(FileFormatError, match="macOS"):
        weights.load_vae(tmp_path / "._vae.safetensors")


def test_shards_without_an_index_are_read_together_or_named(tmp_path, writers, parts):
    writers["sharded"](tmp_path, "model", parts["t5"], 3)
    (tmp_path / "model.safetensors.index.json").unlink()
    loaded = weights.load_t5(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in parts["t5"].items())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"is one of 3 shards, and there is no number 2: fetch"):
        weights.load_t5(tmp_path)
    with pytest.raises(FileFormatError, match=r"no number 2, 3: .*name the folder"):
        weights.load_t5(tmp_path / "model-00001-of-00003.safetensors")


def test_the_root_of_a_repository_in_the_hubs_cache(tmp_path, writers, parts):
    root = tmp_path / "models--owner--name"
    for commit in ("aaa", "bbb"):
        writers["write"](root / "snapshots" / commit / f"{commit}.safetensors", parts["vae"])
    with pytest.raises(SourceError, match="with the revisions aaa, bbb and no main one"):
        resolve(root)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb")
    assert resolve(root).components["vae"].files == ["bbb.safetensors"]
    with pytest.raises(SourceError, match=r"the Hub's cache, no model: name .* \(owner/name\)"):
        resolve(tmp_path)


def test_broken_links_are_named(tmp_path, writers, parts):
    link = tmp_path / "vae" / "vae.safetensors"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(
        SourceError, match=r"vae\.safetensors is a link to a file that is not there: fetch it"
    ):
        weights.load_vae(tmp_path)
    with pytest.raises(SourceError, match=r"is a link to .*gone, which is not there"):
        weights.load_vae(link)
    writers["write"](tmp_path / "clip_l.safetensors", parts["clip_l"])
    with pytest.raises(weights.MissingComponent, match=r"found: text encoder CLIP-L; vae/vae.* is a link"):
        weights.load_vae(tmp_path)
    (tmp_path / "whole.safetensors").symlink_to(tmp_path / "clip_l.safetensors")
    assert weights.load_clip(tmp_path / "whole.safetensors") is not None


def test_tokenizers_lie_in_the_folder_itself_too(tmp_path, writers, parts, official):
    loose = tmp_path / "loose"
    loose.mkdir()
    for file in ("vocab.json", "merges.txt"):
        (loose / file).write_bytes((official / "tokenizer" / file).read_bytes())
    assert resolve(loose, ()).tokenizers == {"clip_l": ".", "clip_g": "."}
    file = writers["write"](tmp_path / "all.safetensors", writers["prefixed"](parts, "clip_l", "clip_g"))
    with pytest.raises(
        weights.MissingComponent, match=r"vocab\.json and merges\.txt from openai/"
    ) as missing:
        weights.load_textenc(file, t5=False)
    assert missing.value.part == "tokenizers"
    encoding = weights.load_textenc(file, t5=False, tokenizers=loose).encode(["a"])
    expected = weights.load_textenc(official, t5=False).encode(["a"])
    assert torch.equal(encoding.pooled, expected.pooled)
