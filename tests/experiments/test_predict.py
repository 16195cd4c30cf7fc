"""Classes of photographs and accuracies over test images, end to end."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments import predict as predict_module
from experiments.harness import main
from experiments.predict import predict, read_pictures
from experiments.prediction_rows import Rows
from tests.networks import save, small_network
from zfnet_jax.data import fit_photograph, load_photograph, make_shapes


def read(out):
    return json.loads((out / "predictions.json").read_text())


def softmax(net, pixels):
    return np.asarray(jax.nn.softmax(net(net.preprocess(pixels))))


def crop_ten(image, side):
    """The corners, the center, and their mirror images."""
    rows, columns = image.shape[0] - side, image.shape[1] - side
    corners = [(0, 0), (0, columns), (rows, 0), (rows, columns)]
    corners.append((rows // 2, columns // 2))
    crops = [image[y : y + side, x : x + side] for y, x in corners]
    return np.stack([*crops, *(crop[:, ::-1] for crop in crops)])


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """Three photographs, and two files that are none."""
    folder = tmp_path_factory.mktemp("some_damaged")
    for file in photographs.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "0b.png").write_bytes((folder / "0.png").read_bytes()[:900])
    (folder / "1b.jpg").write_text("dear reader")
    return folder


@pytest.mark.parametrize("ten_crop", [False, True])
def test_a_folder_is_classified_and_damaged_files_are_named(
    measure, weights, folder, ten_crop, capsys
):
    argv = ["--weights", weights, "--image", folder, "--batch-size", 2]
    metrics, out = measure(predict, *argv, *["--ten-crop"] * ten_crop)
    assert (metrics["images"], metrics["skipped"]) == (3, 2)
    net, content = zf.load(weights), read(out)
    assert [row["image"] for row in content["images"]] == ["0.png", "1.png", "2.png"]
    for row in content["images"]:
        # Ten crops of 32 are cut out of 37 pixels.
        side = 37 if ten_crop else 32
        view = fit_photograph(load_photograph(folder / row["image"]), (side, side))
        views = crop_ten(view, 32) if ten_crop else view[None]
        expected = softmax(net, views).mean(0)
        best = np.argsort(-expected)[:5]
        assert row["classes"] == [net.class_names[label] for label in best]
        np.testing.assert_allclose(row["probabilities"], expected[best], rtol=1e-4)
    assert [row["image"] for row in content["skipped"]] == ["0b.png", "1b.jpg"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"skipped: {row['reason']}" for row in content["skipped"]]
    assert (out / "predictions.png").stat().st_size > 5_000


def test_accuracies_are_those_of_the_probabilities(measure, weights):
    argv = ["--weights", weights, "--limit", 30, "--batch-size", 20, "--k", 2]
    metrics, out = measure(predict, *argv, "--ten-crop")
    net, shapes = zf.load(weights), make_shapes(30, seed=1)
    # 32 of 37 pixels leave two on each side.
    larger = np.pad(shapes.images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    ten = np.stack([softmax(net, crop_ten(x, 32)).mean(0) for x in larger])
    for name, scores in (("one_view", softmax(net, shapes.images)), ("ten_crop", ten)):
        rank = (scores > scores[np.arange(30), shapes.labels][:, None]).sum(1)
        assert metrics[name] == {
            "top1_accuracy": pytest.approx((rank < 1).mean()),
            "top5_accuracy": pytest.approx((rank < 5).mean()),
        }
    for index, row in enumerate(read(out)["images"]):
        assert row["image"] == index
        assert row["true_class"] == shapes.class_names[shapes.labels[index]]
        best = np.argsort(-ten[index])[:2]
        assert row["classes"] == [shapes.class_names[label] for label in best]


def test_any_model_is_asked_and_subfolders_are_its_classes(
    measure, photographs, tmp_path
):
    for name in "abcd":
        (tmp_path / name).mkdir()
        content = (photographs / "0.png").read_bytes()
        (tmp_path / name / "0.png").write_bytes(content)
    argv = ["--model", "tests.networks:small_network", "--image", tmp_path]
    net = small_network()
    square = fit_photograph(load_photograph(photographs / "0.png"), (27, 27))
    crops = crop_ten(square, 24)
    # The center of the same 27 pixels is the single view.
    for name, views in (("one_view", crops[4:5]), ("ten_crop", crops)):
        options = ["--ten-crop"] * (name == "ten_crop")
        metrics, out = measure(predict, *argv, *options)
        expected = softmax(net, views).mean(0)
        for folder, row in zip("abcd", read(out)["images"], strict=True):
            assert row["image"] == f"{folder}/0.png" and row["true_class"] == folder
            assert row["classes"][0] == f"class {expected.argmax()}"
            np.testing.assert_allclose(
                row["probabilities"], np.sort(expected)[::-1], rtol=1e-4
            )
        # The same photograph is in every class, and right in one of four.
        assert metrics[name] == {"top1_accuracy": 0.25}


def test_folders_named_after_some_of_the_classes_are_labels(measure, weights, tmp_path):
    net, shapes = zf.load(weights), make_shapes(60, seed=1)
    chosen = [7, 2]
    for index in np.flatnonzero(np.isin(shapes.labels, chosen)):
        folder = tmp_path / shapes.class_names[shapes.labels[index]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(shapes.images[index]).save(folder / f"{index}.png")
    metrics, out = measure(predict, "--weights", weights, "--image", tmp_path)
    rows = read(out)["images"]
    indices = [int(row["image"].split("/")[1].removesuffix(".png")) for row in rows]
    labels = shapes.labels[indices]
    assert sorted({*labels.tolist()}) == sorted(chosen)
    scores = softmax(net, shapes.images[indices])
    rank = (scores > scores[np.arange(len(rows)), labels][:, None]).sum(1)
    assert metrics["one_view"]["top5_accuracy"] == pytest.approx((rank < 5).mean())
    assert 0 < (rank < 5).mean() < 1
    assert all(row["true_class"] == row["image"].split("/")[0] for row in rows)


def test_wordnet_ids_are_labels_of_a_network_of_some_of_their_classes(
    measure, tmp_path
):
    path = tmp_path / "network.safetensors"
    save(path, 0)
    net = zf.load(path)
    names = "goldfish", *net.class_names[2:], "tench"
    zf.save(path, net.model, preprocess=net.preprocess, class_names=names, metadata={})
    for name, pixels in zip(
        ("n01440764", "n01443537"), make_shapes(2).images, strict=True
    ):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "images" / name / "0.png")
    argv = ["--weights", path, "--image", tmp_path / "images"]
    metrics, out = measure(predict, *argv)
    assert [x["true_class"] for x in read(out)["images"]] == ["tench", "goldfish"]
    assert "one_view" in metrics


def test_several_networks_are_averaged(measure, weights, trained, refuse, tmp_path):
    other = str(trained / "epochs/epoch_0001.safetensors")
    argv = ["--weights", weights, "--weights", other, "--limit", 30, "--ten-crop"]
    metrics, out = measure(predict, *argv)
    nets, shapes = [zf.load(weights), zf.load(other)], make_shapes(30, seed=1)
    larger = np.pad(shapes.images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    scores = {}
    for view, views in (
        ("one_view", shapes.images[:, None]),
        ("ten_crop", np.stack([crop_ten(x, 32) for x in larger])),
    ):
        flat = views.reshape(-1, 32, 32, 3)
        shape = *views.shape[:2], -1
        scores[view] = [softmax(net, flat).reshape(shape).mean(1) for net in nets]
        scores[view].append((scores[view][0] + scores[view][1]) / 2)
    names = [*metrics["networks"]]
    assert len({*names}) == 2 and metrics["network"] == "the average of 2 networks"
    accuracies = [*metrics["networks"].values(), metrics]
    top1 = set()
    for view, by_network in scores.items():
        for expected, accuracy in zip(by_network, accuracies, strict=True):
            right = (expected.argmax(1) == shapes.labels).mean()
            assert accuracy[view]["top1_accuracy"] == pytest.approx(right)
            top1.add(right)
    assert len(top1) > 2
    for index, row in enumerate(read(out)["images"]):
        rows = [*(row["networks"][name] for name in names), row]
        for expected, best in zip(scores["ten_crop"], rows, strict=True):
            order = np.argsort(-expected[index])[:5]
            assert best["classes"] == [shapes.class_names[label] for label in order]
            np.testing.assert_allclose(
                best["probabilities"], expected[index][order], rtol=1e-4
            )
    digests = json.loads((out / "manifest.json").read_text())["digests"]
    assert [*digests] == ["network 1", "network 2"]
    argv = ["--weights", weights, "--weights", "zfnet32-cifar10", "--limit", 2]
    line = refuse(predict, 2, *argv)
    assert "--weights zfnet32-cifar10: class 0 is airplane, and " in line
    argv = ["--weights", "", "--limit", 2]
    assert "not a weight file" in refuse(predict, 2, *argv)


class Killed(BaseException):
    """Ends a run after some of its images."""


def test_a_killed_run_reads_only_the_rest(
    measure, weights, folder, tmp_path, monkeypatch
):
    argv = ["--weights", weights, "--image", folder, "--batch-size", 1]
    _, whole = measure(predict, *argv)
    save, reads = Rows.save, []

    def save_and_die(rows, file):
        save(rows, file)
        if len(rows.classes) == 2:
            raise Killed

    def note(subjects, indices, view, rows):
        reads.append(indices.tolist())
        return read_pictures(subjects, indices, view, rows)

    monkeypatch.setattr(predict_module, "_SAVE_EVERY", 0)
    monkeypatch.setattr(predict_module, "read_pictures", note)
    argv = [*map(str, argv), "--dpi", "32", "--out", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Rows, "save", save_and_die)
        main(predict, argv)
    # Other options, other rows.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Rows, "save", save_and_die)
        main(predict, [*argv, "--k", "2"])
    assert main(predict, argv) == 0
    assert reads == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [3, 4]]
    assert read(tmp_path) == read(whole)
    assert not (tmp_path / ".predict").exists()


def test_impossible_images_are_refused(refuse, weights, folder, tmp_path):
    given = ["--weights", weights, "--image"]
    assert "1b.jpg is not an image" in refuse(predict, 4, *given, folder / "1b.jpg")
    assert "holds no images" in refuse(predict, 3, *given, tmp_path)
    line = refuse(predict, 2, "--dataset", "shapes")
    assert "not those of zfnet32" in line
