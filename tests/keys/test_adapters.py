"""Every trainer's names of every layer of the released models are read, and lead to one place each."""

import gzip
import json

import pytest

from weights.adapters.names import LAYOUTS, PREFIXES, flat, read_key
from weights.keys import to_theirs

MODELS = {
    "mmdit": [
        (f"{name}.safetensors", "model.diffusion_model.")
        for name in ("sd3_medium", "sd3.5_medium", "sd3.5_large")
    ],
    "clip_l": [("text_encoders_clip_l.safetensors", "")],
    "clip_g": [("text_encoders_clip_g.safetensors", "")],
    "t5": [("text_encoders_t5xxl_fp16.safetensors", "")],
}
DEPTHS = {"sd3.5_large.safetensors": 38}


def modules(shapes, name, prefix):
    """The paths of all modules with weights."""
    keys = shapes(name, prefix)
    return sorted({key.rpartition(".")[0] for key in keys if key.endswith((".weight", ".bias"))})


@pytest.mark.parametrize(("part", "layout"), [(part, name) for part in LAYOUTS for name in LAYOUTS[part]])
@pytest.mark.parametrize("spelled_flat", [False, True])
def test_each_table_is_a_bijection_onto_the_official_modules(shapes, part, layout, spelled_flat):
    table = flat(LAYOUTS[part][layout]) if spelled_flat else LAYOUTS[part][layout]
    prefix = next(p for p, of in PREFIXES.items() if of == part and p.endswith("_") == spelled_flat)
    for name, official in MODELS[part]:
        paths = modules(shapes, name, official)
        recipes, unknown = to_theirs(paths, table)
        if "names" in layout and layout.split()[0] in ("official", "diffusers'"):
            assert set(unknown) <= {"encoder.embed_tokens"}
        spelled = [source for recipe in recipes.values() for source in recipe.sources]
        assert len(set(spelled)) == len(spelled) > 0
        for path, recipe in recipes.items():
            thirds = "qkv" if len(recipe.sources) == 3 else ("",)
            for third, source in zip(thirds, recipe.sources, strict=True):
                key = read_key(f"{prefix}{source}.lora_down.weight", {part: DEPTHS.get(name, 24)})
                assert key is not None
                assert (key.part, key.place.ours, key.place.third) == (part, path, third)
                assert (key.place.change, key.role) == (recipe.change, "down")


def test_every_key_of_every_dialect_has_a_place(shared_reference, shapes):
    """32 full-size lists, made by the tools themselves."""
    lists = sorted((shared_reference / "adapters" / "keys").glob("*.json.gz"))
    assert len(lists) == 32
    for path in lists:
        read = json.loads(gzip.decompress(path.read_bytes()))
        size = "large" if ".large." in path.name else "medium"
        depths = {"mmdit": 38 if size == "large" else 24}
        ours = {
            part: set(modules(shapes, *(names[2 if size == "large" else 1] if part == "mmdit" else names[0])))
            for part, names in MODELS.items()
        }
        places = set()
        for key in read["keys"]:
            found = read_key(key, depths)
            assert found is not None, key
            assert key == found.prefix + key[len(found.prefix) : -len(found.suffix)] + found.suffix
            assert (found.place.ours in ours[found.part]) == (key not in read["no_target"]), key
            places.add((found.part, found.place, found.role))
        assert len(places) == len(read["keys"])
