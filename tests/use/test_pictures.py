"""Pictures of any kind, brought to what a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import innerloop as il
from innerloop.data.tasks import DRAWINGS
from innerloop.recipe import config
from innerloop.use import Pretrained
from innerloop.use.pictures import Form, prepare, read

Image, ImageDraw = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageDraw")
np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

from .photographs import CIRCLE, FIGURES, TEE, encoded, photograph  # noqa: E402

DRAWN, COLOUR = Form(28, 1, DRAWINGS["strokes"]), Form(16, 3, None)


def ramp(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Any:
    """Dark at the left and light at the right."""
    values = np.tile(np.linspace(0, 255, size[0], dtype=np.uint8), (size[1], 1))
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_what_the_model_reads(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.tile(np.linspace(0, 60_000, 40).astype(np.uint16), (20, 1)))
    elif mode in ("LA", "RGBA"):
        image = ramp().convert(mode)
    else:
        image = ramp(mode)
    form = {"CMYK": "TIFF", "YCbCr": "TIFF", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    pixels, _ = prepare(Image, encoded(image, form), COLOUR)
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, :, 0].max() < 0.2
    assert pixels[:, :, -1].min() > 0.8


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 10, 20))
    pixels, done = prepare(Image, encoded(image, "PNG"), COLOUR)
    assert torch.allclose(pixels[:, 8, 2], torch.tensor([1.0, 0.0, 0.0]), atol=0.05)
    assert torch.allclose(pixels[:, 8, -2], torch.ones(3), atol=0.05)
    assert done == ["transparency put on white", "resized to 16 x 16"]


def test_photographs_are_turned_as_the_camera_noted() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    pixels, done = prepare(Image, encoded(ramp("RGB", (40, 40)), exif=exif), COLOUR)
    assert "rotated upright, by its EXIF orientation" in done
    assert pixels[:, 0].max() < 0.2  # what was left is at the top
    assert pixels[:, -1].min() > 0.8
    _, done = prepare(Image, encoded(ramp("RGB", (40, 40))), COLOUR)
    assert not any("turned" in text for text in done)


def test_oblong_pictures_are_squeezed_as_in_training_and_it_is_said() -> None:
    _, done = prepare(Image, encoded(ramp()), COLOUR)
    assert done == ["resized to 16 x 16, squeezed into the square as in training"]
    pixels, done = prepare(Image, encoded(ramp("RGB", (16, 16)), "PNG"), COLOUR)
    assert done == []
    assert torch.equal(pixels, torch.from_numpy(np.array(ramp("RGB", (16, 16)))).movedim(-1, 0) / 255)


def test_the_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (16, 16), shade) for shade in ("black", "white")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert prepare(Image, content, COLOUR)[1][0] == "first of several frames used"


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two drawings' ink, 0 to 1."""
    return float(torch.minimum(one, other).sum() / torch.maximum(one, other).sum())


def test_a_photographed_drawing_is_as_drawings_of_training_are() -> None:
    """Light on dark, as large, with lines as broad; the same whatever the light, the size and the place."""
    ink = il.Strokes(ways=20).sample(1, torch.Generator().manual_seed(0)).support.x[0].mean()
    for figure in FIGURES.values():
        pixels, done = prepare(Image, encoded(photograph(figure, 0)), DRAWN)
        assert "dark ink on a light background inverted" in done
        assert pixels[0, 0].max() == 0
        assert pixels.max() > 0.9
        assert 0.5 * ink < pixels.mean() < 3 * ink
        rows = torch.nonzero(pixels[0].amax(1) > 0.5)
        assert 0.55 * 28 < int(rows[-1] - rows[0]) + 1 < 0.95 * 28


@pytest.mark.parametrize("name", FIGURES)
def test_light_size_and_place_do_not_matter(name: str) -> None:
    one, other = (
        prepare(Image, encoded(photograph(FIGURES[name], seed, size, pen, askew=0)), DRAWN)[0]
        for seed, size, pen in ((0, (1600, 1200), 16), (1, (700, 900), 8))
    )
    assert overlap(one, other) > 0.75


def test_a_drawing_the_other_way_round_is_the_same() -> None:
    """Chalk on a board, and ink that is all there is of a transparent picture."""
    paper = photograph(TEE, 3)
    board = Image.fromarray(255 - np.asarray(paper))
    one, other = (prepare(Image, encoded(image, "PNG"), DRAWN)[0] for image in (paper, board))
    assert overlap(one, other) > 0.9
    alpha = Image.eval(paper.convert("L"), lambda v: 255 if v < 90 else 0)
    only_ink = Image.new("RGBA", paper.size, (0, 0, 0, 255))
    only_ink.putalpha(alpha)
    found, done = prepare(Image, encoded(only_ink, "PNG"), DRAWN)
    assert "transparency put on white" in done
    assert overlap(one, found) > 0.7


def test_dirt_is_no_part_of_a_drawing() -> None:
    clean = photograph(CIRCLE, 0)
    dirty = clean.copy()
    dirty.paste((40, 40, 40), (20, 700, 25, 705))
    one, other = (prepare(Image, encoded(image), DRAWN)[0] for image in (clean, dirty))
    assert overlap(one, other) > 0.95


@pytest.mark.parametrize("shade", ["white", "grey", "black"])
def test_a_blank_page_is_refused(shade: str) -> None:
    with pytest.raises(ValueError, match="it shows no drawing"):
        prepare(Image, encoded(Image.new("RGB", (300, 200), shade)), DRAWN)


def test_a_dot_and_a_line_are_drawings_too() -> None:
    for box in ((140, 90, 160, 110), (20, 99, 280, 102), (150, 10, 153, 190)):
        image = Image.new("L", (300, 200), 255)
        image.paste(0, box)
        assert prepare(Image, encoded(image, "PNG"), DRAWN)[0].max() > 0.5


def test_folders_name_what_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("a.PNG", encoded(ramp(), "PNG")), ("b.jpg", b"no image"), ("c.jpg", encoded(ramp())[:200])):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"as telephones have it")
    (tmp_path / ".hidden").write_text("not looked at")
    found = read(tmp_path, COLOUR)
    assert found.names == ["a.PNG"]
    assert set(found.unreadable) == {"b.jpg", "c.jpg", "IMG_1.HEIC"}
    told = "\n".join(found.told())
    assert "IMG_1.HEIC (HEIC is not supported: export it as JPEG)" in told
    assert "b.jpg (not a picture that Pillow can read)" in told
    (tmp_path / "a.PNG").unlink()
    with pytest.raises(ValueError, match=r"no picture can be read: IMG_1\.HEIC .*, b\.jpg"):
        read(tmp_path, COLOUR)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture can be read: there is no file"):
        read(tmp_path / "empty", COLOUR)
    with pytest.raises(FileNotFoundError, match="there is no folder or picture"):
        read(tmp_path / "missing", COLOUR)


def test_a_single_picture_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(ramp(), "PNG"))
    (tmp_path / "other.png").write_bytes(encoded(ramp(), "PNG"))
    assert read(tmp_path / "one.png", COLOUR).names == ["one.png"]


@pytest.mark.parametrize("loss", [0.5, 0.7, 0.85])
def test_light_that_falls_across_a_page(loss: float) -> None:
    """So far that paper at one side is darker than ink at the other."""
    even = photograph(TEE, 3)
    height, width = even.size[::-1]
    light = 1 - loss * np.linspace(0, 1, width)[None] - loss / 4 * np.linspace(0, 1, height)[:, None]
    dim = Image.fromarray((np.asarray(even) * np.clip(light, 0.02, 1)[..., None]).astype(np.uint8))
    one, (other, done) = prepare(Image, encoded(even), DRAWN)[0], prepare(Image, encoded(dim), DRAWN)
    assert "dark ink on a light background inverted" in done
    assert overlap(one, other) > 0.75


@pytest.mark.parametrize("side", [60, 120, 400])
def test_a_small_drawing_is_found(side: int) -> None:
    """With a thin pen, on a page many times as large."""
    page = Image.new("L", (1600, 1200), 230)
    drawing = ImageDraw.Draw(page)
    for stroke in TEE:
        drawing.line([(300 + side * x, 200 + side * y) for x, y in stroke], fill=40, width=max(4, side // 12))
    large = prepare(Image, encoded(photograph(TEE, 0, askew=0)), DRAWN)[0]
    assert overlap(large, prepare(Image, encoded(page), DRAWN)[0]) > 0.6


def test_what_a_model_reads_is_in_its_recipe() -> None:
    learner = il.maml(il.models.mlp(1, 2))
    forms = {
        "strokes-5w1s-maml": Form(28, 1, DRAWINGS["strokes"]),
        "omniglot-5w1s-quick": Form(28, 1, DRAWINGS["omniglot"]),
        "mini-imagenet-5w1s-maml": Form(84, 3, None),
    }
    for recipe, form in forms.items():
        assert Form.of(Pretrained(learner, config.load_recipe(recipe))) == form
    with pytest.raises(ValueError, match="does not take pictures: it was trained on the tasks sinusoid"):
        Form.of(Pretrained(learner, config.load_recipe("sinusoid-maml")))


def test_class_folders_that_link_to_each_other_count_each_picture_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ramp().save(tmp_path / name / "0.png")
    (tmp_path / "a" / "more").symlink_to("../b")
    (tmp_path / "b" / "more").symlink_to("../a")
    (tmp_path / "b" / "again.png").symlink_to("0.png")
    assert read(tmp_path, COLOUR).names == ["a/0.png", "b/0.png"]
    (tmp_path / "b" / "x.png").symlink_to("../a/0.png")
    with pytest.raises(ValueError, match=r"a/0\.png \(class a\) and b/x\.png \(class b\) are one file"):
        read(tmp_path, COLOUR)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    ramp().save(tmp_path / "0.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert list(read(tmp_path, COLOUR).unreadable) == ["gone.png"]
