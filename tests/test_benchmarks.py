"""What the benchmarks stand on: the images, the network, and the reason they give when there is no data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import cifar
import language
import recurrent
import secateur as sc
from cifar import Images, PadShortcut, ResNet20
from helpers.digits import DATA, TASK, dense_model


def jpeg(colour: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), (colour, 0, 255 - colour), dtype=np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_images_are_read_in_order_as_channels_first_rgb(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    table = pa.table({"image": [jpeg(0), jpeg(200), jpeg(90)], "label": pa.array([3, 1, 2], pa.int8())})
    pq.write_table(table, tmp_path / "cifar10" / "test.parquet")
    pixels, labels = cifar.read(tmp_path, "test", limit=2)
    assert labels.tolist() == [3, 1]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 3, 32, 32)
    means = pixels.float().mean(dim=(2, 3))
    torch.testing.assert_close(means, torch.tensor([[0.0, 0.0, 255.0], [200.0, 0.0, 55.0]]), atol=3.0, rtol=0.0)


def test_every_augmented_image_is_a_shift_or_mirrored_shift_of_its_own_original() -> None:
    pixels = torch.randint(1, 256, (5, 3, 32, 32), dtype=torch.uint8)
    batches = Images(pixels=pixels, labels=torch.arange(5), batch_size=2, augment=True)
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    seen = []
    for images, labels in batches:
        for image, label in zip(images, labels.tolist(), strict=True):
            shifts = [padded[label, :, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
            possible = cifar.normalise(torch.stack([*shifts, *(s.flip(2) for s in shifts)]))
            assert (possible == image).flatten(1).all(1).any()
            seen.append(label)
    assert sorted(seen) == list(range(5))
    assert len(batches) == 3


def test_images_without_augmentation_come_in_order_each_time() -> None:
    images = Images(pixels=torch.zeros(5, 3, 32, 32, dtype=torch.uint8), labels=torch.arange(5), batch_size=2)
    for _ in range(2):
        assert torch.cat([labels for _, labels in images]).tolist() == [0, 1, 2, 3, 4]


def test_the_network_has_the_names_and_the_size_of_the_published_weights() -> None:
    model = ResNet20()
    assert sum(p.numel() for p in model.parameters()) == 269_722
    modules = {name.rpartition(".")[0] for name in model.state_dict()}
    blocks = {f"layer{i}.{j}.{part}" for i in (1, 2, 3) for j in (0, 1, 2) for part in ("conv1", "bn1", "conv2", "bn2")}
    assert modules == {"conv1", "bn1", "linear"} | blocks


def test_a_padded_shortcut_keeps_every_other_pixel_between_zero_channels() -> None:
    x = torch.randn(2, 4, 6, 6)
    y = PadShortcut(4, 8)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, 0::2, 0::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_missing_data_is_named_with_the_page_that_describes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    assert "SECATEUR_DATA is not set" in str(cifar.data_folder())
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    reason = str(cifar.data_folder())
    assert "cifar10/train.parquet" in reason
    assert "benchmarks/README.md" in reason


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("kind", "projected", "packed"), [("GRU", False, False), ("LSTM", True, True)], ids=["GRU", "packed projected LSTM"]
)
def test_half_of_the_hidden_units_are_gone_and_the_row_says_what_is_left(kind, projected, packed) -> None:
    setting = recurrent.Setting(kind=kind, layers=1, both=False, projected=projected, packed=packed)
    row = recurrent.measure(setting, pairs=2, hidden=160)
    gates, inputs, state = recurrent.GATES[kind], recurrent.INPUT, recurrent.PROJECTED

    def elements(hidden: int) -> int:
        width = state if projected else hidden
        return gates * hidden * (inputs + width + 2) + projected * hidden * state + 10 * (width + 1)

    assert row.hidden == (160, 80)
    assert row.removed == pytest.approx(1 - elements(80) / elements(160))
    assert row.error <= row.tolerance
    assert f"{kind}, 1 layer" in recurrent.line(row)


def test_every_recurrent_network_that_torch_has_is_measured() -> None:
    found = recurrent.settings((1, 2, 3))
    assert len({s.name for s in found}) == len(found) == 48
    assert {s.kind for s in found if s.projected} == {"LSTM"}


def test_words_of_a_text_are_numbered_by_how_often_they_stand_in_the_training_text(tmp_path: Path) -> None:
    (tmp_path / "wikitext-2").mkdir()
    texts = {"train": " b a b \n b a c ", "valid": " a b c d ", "test": " <unk> b b a a "}
    for split, text in texts.items():
        (tmp_path / language.WIKITEXT.format(split=split)).write_text(text)
    found = language.wikitext(tmp_path, n_words=4, length=2)
    # b three times, a twice, then the end of a line, which stands once like c but before it
    assert found["train"].tolist() == [[1, 2], [1, 3], [1, 2]]
    assert found["valid"].tolist() == [[2, 1], [0, 0]]
    assert found["test"].tolist() == [[0, 1], [1, 2]]


def test_an_lstm_learns_the_next_word_with_one_matrix_for_words_in_and_out() -> None:
    torch.manual_seed(0)
    model = language.TiedLSTM(5, width=16)
    assert model.out.weight is model.embed.weight
    ids = torch.arange(60).remainder(5).view(6, 10)
    language.train(model, ids, epochs=60, lr=0.02)
    assert torch.equal(model(ids)[:, 1:-1].argmax(-1), ids[:, 2:])


def test_the_loop_beside_a_scan_finds_the_losses_of_the_scan() -> None:
    import scan

    model, groups = dense_model(), sc.couple(sc.trace(dense_model(), DATA.search[0][0]))
    scores = sc.score(model, groups, DATA.search[:2], TASK, criterion=sc.criteria.magnitude())
    beside = scan.Beside(every=1)
    curves = sc.scan(model, groups, scores, DATA.search[:2], TASK, removed=(0.5,), executor=beside)
    assert beside.apart == 0.0
    assert len(beside.losses) == len({point.group for point in curves.points}) > 1
