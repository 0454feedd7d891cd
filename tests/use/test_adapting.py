"""From a folder of photographs to predictions, by the command line."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from innerloop.data.folders import image_folder
from innerloop.use.adapting import adapt_to, predict
from innerloop.use.pretrained import Pretrained
from innerloop.use.saved import Classifier

Image = pytest.importorskip("PIL.Image")
safetensors = pytest.importorskip("safetensors.torch")
for name in ("sklearn", "scipy", "typer"):
    pytest.importorskip(name)

from innerloop.cli import run  # noqa: E402

from .photographs import FIGURES, SEVEN, encoded, photograph, write  # noqa: E402


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of five characters as people have them: in several formats, one turned, one transparent, one broken;
    and five new ones."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (name, figure) in enumerate(FIGURES.items()):
        (folder / "mine" / name).mkdir(parents=True)
        (folder / "new" / name).mkdir(parents=True)
        one, other, new = (photograph(figure, 10 * number + i) for i in range(3))
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = encoded(one.rotate(90, expand=True), exif=exif) if number == 0 else encoded(one)
        (folder / "mine" / name / "1.jpg").write_bytes(turned)
        cut_out = other.convert("RGBA")
        cut_out.putalpha(Image.eval(other.convert("L"), lambda v: 255 if v < 90 else 0))
        content = (
            encoded(cut_out, "PNG") if number == 1 else encoded(other)[:999] if number == 2 else encoded(other, "WEBP")
        )
        (folder / "mine" / name / "2.png").write_bytes(content)
        (folder / "new" / name / "3.JPG").write_bytes(encoded(new))
    return folder


def test_ten_photographs_are_enough(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the model that comes with the package."""
    csv_file, picture, saved = (tmp_path / name for name in ("new.csv", "new.png", "mine.safetensors"))
    words = ["adapt", "strokes", "--support", str(photos / "mine"), "--query", str(photos / "new")]
    assert run([*words, "-o", str(csv_file), "--picture", str(picture), "--save", str(saved)]) == 0
    told = capsys.readouterr().out
    assert "9 pictures, 2 of circle, 2 of cross, 2 of tee, 1 of triangle, 2 of zigzag" in told
    assert "rotated upright, by its EXIF orientation: 1 of 9" in told
    assert "transparency put on white: 1 of 9" in told
    assert "dark ink on a light background inverted: 9 of 9" in told
    assert "left out, not readable: triangle/2.png" in told
    assert "8 examples left out in turn" in told
    rows = list(csv.DictReader(csv_file.open()))
    right = [row["file"].startswith(f"{row['predicted']}/") for row in rows]
    assert sum(right) == 5, told
    for row in rows:
        assert sum(float(row[name]) for name in FIGURES) == pytest.approx(1, abs=1e-3)
        assert float(row["probability"]) == max(float(row[name]) for name in FIGURES)
    assert Image.open(picture).width > 500
    assert run(["adapt", str(saved), "--query", str(photos / "new"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["query"]["accuracy"] == 100
    for row, shares in zip(rows, again["query"]["probabilities"], strict=True):
        assert [float(row[name]) for name in sorted(FIGURES)] == pytest.approx(shares, abs=1e-4)


def test_the_json_says_what_was_done(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["adapt", "strokes", "--support", str(photos / "mine"), "--steps", "1", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert len(told["support"]["files"]) == 9
    assert list(told["support"]["unreadable"]) == ["triangle/2.png"]
    assert len(told["losses"]) == 2
    assert told["losses"][1] < told["losses"][0]
    assert told["expected"]["examples"] == 8
    assert "query" not in told
    assert "9 pictures" in captured.err


def test_nothing_is_written_over_and_what_cannot_be_is_said_first(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious.csv"
    precious.write_text("mine")
    words = ["adapt", "strokes", "--support", str(photos / "mine"), "--query", str(photos / "new")]
    assert run([*words, "-o", str(precious)]) == 1
    assert "exists already: give another name, or --overwrite" in capsys.readouterr().err
    assert precious.read_text() == "mine"
    for wrong, message in (
        (["adapt", "strokes"], "give --support"),
        (["adapt", "strokes", "--support", str(photos / "mine"), "-o", "x.csv"], "give --query"),
        (["adapt", "x.safetensors", "--query", str(photos / "new"), "--save", "y"], "need --support"),
        (["adapt", "x.safetensors", "--query", str(photos / "new"), "--steps", "2"], "need --support"),
        (["adapt", "strokes", "--query", str(photos / "new")], "give --support, the examples"),
        (
            ["adapt", str(precious), "--support", str(photos / "mine")],
            "is a file: if `innerloop adapt --save` wrote it",
        ),
        (["adapt", "strokes", "--support", str(photos / "mine"), "--query", "missing"], "no folder missing"),
        ([*words, "--picture", str(tmp_path / "no" / "x.png")], "no folder"),
        (["adapt", "missing", "--support", str(photos / "mine")], "no trained model missing"),
        (["adapt", "sinusoid", "--support", str(photos / "mine")], "does not take pictures"),
        (["adapt", str(precious), "--query", str(photos / "new")], "is not a classifier that"),
        (["adapt", "strokes", "--support", str(photos / "missing")], "no folder"),
        (["adapt", "strokes", "--support", str(photos / "new" / "cross")], "3.JPG is not in a folder of a class"),
    ):
        assert run(wrong) != 0
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert run([*words, "-o", str(precious), "--overwrite"]) == 0
    assert precious.read_text().startswith("file,predicted,probability,")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("1.jpg", r"no picture of bad can be read: bad/1\.jpg \(not a picture that Pillow can read\)"),
        ("IMG_1.HEIC", r"no picture of bad can be read: bad/IMG_1\.HEIC \(HEIC is not supported: export it as JPEG\)"),
        ("", "no picture of bad can be read$"),
    ],
)
def test_a_class_without_a_readable_picture_is_named(tmp_path: Path, file: str, message: str) -> None:
    write(str(tmp_path), str(tmp_path / ".elsewhere"))
    (tmp_path / "bad").mkdir()
    if file:
        (tmp_path / "bad" / file).write_bytes(b"broken")
    with pytest.raises(ValueError, match=message):
        adapt_to(Pretrained.load("strokes"), tmp_path)


def test_more_classes_than_were_trained(tmp_path: Path) -> None:
    write(str(tmp_path / "mine"), str(tmp_path / "new"), SEVEN)
    model = Pretrained.load("strokes")
    with pytest.raises(ValueError, match="7 classes, but the head was trained for 5"):
        adapt_to(model, tmp_path / "mine")
    found = predict(adapt_to(model, tmp_path / "mine", head="drawn").classifier, tmp_path / "new")
    assert found.probabilities.shape == (7, 7)
    right = [name == f"{label}.jpg" for name, label in zip(found.pictures.names, found.predicted, strict=True)]
    assert sum(right) >= 6


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, None])
def test_a_saved_classifier_is_checked(photos: Path, tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "mine.safetensors"
    adapt_to(Pretrained.load("strokes"), photos / "mine").classifier.save(path)
    x = torch.rand(3, 1, 28, 28)
    assert Classifier.load(path).probabilities(x).shape == (3, 5)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(ValueError, match="is not a classifier that `innerloop adapt --save` wrote"):
        Classifier.load(path)
    with pytest.raises(FileNotFoundError):
        Classifier.load(tmp_path / "missing")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_the_weights_of_a_saved_classifier_are_never_cast(photos: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "mine.safetensors"
    adapt_to(Pretrained.load("strokes"), photos / "mine").classifier.save(path)
    with safetensors.safe_open(str(path), "pt") as file:
        about = {"format": "pt", "innerloop": file.metadata()["innerloop"]}  # as the former version wrote it
    weights = safetensors.load(path.read_bytes())
    path.write_bytes(safetensors.save(weights, about))
    Classifier.load(path)
    path.write_bytes(safetensors.save({**weights, "head.weight": weights["head.weight"].to(dtype)}, about))
    with pytest.raises(ValueError, match=f"head.weight is saved as {str(dtype)[6:]}, but the model has float32"):
        Classifier.load(path)


def test_any_flipped_byte_of_a_saved_classifier_is_noticed(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    adapt_to(Pretrained.load("strokes"), photos / "mine").classifier.save(path)
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mine\.safetensors is not a classifier") as caught:
            Classifier.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", "1"), ("classes", [1, 2, 3, 4, 5]), ("pictures", 3), ("model", None)]
)
def test_odd_values_in_a_saved_classifier_are_one_line(photos: Path, tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "mine.safetensors"
    adapt_to(Pretrained.load("strokes"), photos / "mine").classifier.save(path)
    with safetensors.safe_open(str(path), "pt") as file:
        about = json.loads(file.metadata()["innerloop"])
    told = json.dumps({**about, key: value})
    path.write_bytes(safetensors.save(safetensors.load(path.read_bytes()), {"format": "pt", "innerloop": told}))
    with pytest.raises(ValueError, match=f"{key} must be ") as caught:
        Classifier.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pictures",
    [{"size": 10**9}, {"size": "x"}, {"channels": 3}, {"drawing": {"fill": 1e6, "pen": 0.1}},
     {"drawing": {"fill": 0.5}}, {"drawing": {"fill": 0.5, "pen": 0.1, "ink": 1}}],
)  # fmt: skip
def test_odd_pictures_of_a_saved_classifier_are_one_line(
    photos: Path, tmp_path: Path, pictures: dict[str, object]
) -> None:
    """A picture is brought to the size that the file asks for, which memory has to hold."""
    path = tmp_path / "mine.safetensors"
    adapt_to(Pretrained.load("strokes"), photos / "mine").classifier.save(path)
    with safetensors.safe_open(str(path), "pt") as file:
        about = json.loads(file.metadata()["innerloop"])
    told = json.dumps({**about, "pictures": {**about["pictures"], **pictures}})
    path.write_bytes(safetensors.save(safetensors.load(path.read_bytes()), {"format": "pt", "innerloop": told}))
    with pytest.raises(ValueError, match=r"mine\.safetensors is not a classifier .* its pictures") as caught:
        Classifier.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_a_saved_classifier_that_is_no_file_is_neither_waited_for_nor_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    for name in ("pipe", "device", "huge", "."):
        with pytest.raises(ValueError, match="is not a classifier that `innerloop adapt --save` wrote: ") as caught:
            Classifier.load(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


def test_weights_that_are_no_numbers_name_the_model(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Pretrained.load("strokes")
    with torch.no_grad():
        next(model.learner.parameters()).fill_(float("nan"))
    folder = model.save_pretrained(tmp_path / "lost")
    assert run(["adapt", str(folder), "--support", str(photos / "mine")]) == 1
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {folder}: ")
    assert "outputs of the adapted model are NaN" in error


HOSTILE = [
    os.fsdecode(b"\xff\xfe"),
    "=cmd|' calc'!A0",
    "+1+1",
    "-2-3",
    "@SUM(A1)",
    "\tx",
    "a\x1b[31mb",
    "[bold]",
    "$a$b",
]


def test_names_are_safe_wherever_they_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of classes and of pictures; names that are not UTF-8 lost everything at the end."""
    for number, name in enumerate(HOSTILE[:5]):
        content = encoded(photograph(list(FIGURES.values())[number], number))
        for folder in ("mine", "new"):
            (tmp_path / folder / name).mkdir(parents=True)
            for file in HOSTILE[number : number + 5]:
                (tmp_path / folder / name / f"{file}.jpg").write_bytes(content)
    (tmp_path / "new" / os.fsdecode(b"b\xff.jpg")).write_bytes(b"broken")
    csv_file, saved, drawn = (tmp_path / name for name in ("new.csv", "mine.safetensors", "new.png"))
    words = ["adapt", "strokes", "--support", str(tmp_path / "mine"), "--query", str(tmp_path / "new"), "--json"]
    assert run([*words, "-o", str(csv_file), "--save", str(saved), "--picture", str(drawn)]) == 0
    out, err = capsys.readouterr()
    for shown in (out, err, csv_file.read_text("utf-8")):
        assert not any((ord(letter) < 32 and letter != "\n") or 0xD800 <= ord(letter) < 0xE000 for letter in shown)
    assert "b\\xff.jpg (not a picture that Pillow can read)" in err
    told = json.loads(out)
    assert {os.fsencode(name.partition("/")[0]) for name in told["query"]["files"]} == set(
        map(os.fsencode, HOSTILE[:5])
    )
    rows = list(csv.reader(csv_file.open(encoding="utf-8")))
    assert len(rows) == 26
    assert not any(text[:1] in "=+-@\t\r" for row in rows for text in row)
    assert set(Classifier.load(saved).classes) == set(HOSTILE[:5])


def test_a_folder_with_names_that_are_not_utf8_is_a_data_set(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE[:4]):
        (tmp_path / "set" / name).mkdir(parents=True)
        content = encoded(photograph(list(FIGURES.values())[number], number))
        (tmp_path / "set" / name / os.fsdecode(b"\xff.jpg")).write_bytes(content)
    for _ in range(2):  # the second time from the cache
        splits = image_folder(tmp_path / "set", size=8, channels=1)
        assert {name for split in splits for name in split.names} == set(HOSTILE[:4])
    (tmp_path / "set" / HOSTILE[0] / os.fsdecode(b"broken\xfe.jpg")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"broken\\xfe\.jpg"):
        image_folder(tmp_path / "set", size=8, channels=1)
    with pytest.warns(UserWarning, match=r"broken\\xfe\.jpg"):
        image_folder(tmp_path / "set", size=8, channels=1, skip_unreadable=True)
