"""Sources on disk: what was written comes back, and what cannot be read is named with its place."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import SOURCES, RawData, ReadConfig, load_data
from secateur.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def read(source, **settings):
    scheme, _, address = source.partition(":")
    return SOURCES[scheme](address, ReadConfig(**settings))


def test_npz_images_become_channels_first(tmp_path):
    x = RNG.integers(0, 256, (30, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(30) % 2, classes=np.array(["no", "yes"]))
    raw = read(f"npz:{tmp_path / 'a.npz'}")
    assert raw.train[0].dtype == torch.uint8
    assert torch.equal(raw.train[0], torch.from_numpy(x).permute(0, 3, 1, 2))
    assert raw.classes == ("no", "yes")
    np.savez(tmp_path / "b.npz", x=x.transpose(0, 3, 1, 2), y=np.arange(30) % 2)
    assert torch.equal(read(f"npz:{tmp_path / 'b.npz'}").train[0], raw.train[0])


def test_npz_parts_are_used_as_they_are(tmp_path):
    file = tmp_path / "a.npz"
    parts = {k: RNG.normal(size=(n, 4)) for k, n in {"x_train": 40, "x_val": 8, "x_test": 6}.items()}
    labels = {k.replace("x", "y"): np.arange(len(v)) % 2 + 3 for k, v in parts.items()}
    np.savez(file, **parts, **labels)
    splits = load_data(f"npz:{file}")
    assert [len(p) for p in splits.parts().values()] == [40, 8, 6]
    assert splits.classes == ("3", "4")
    assert splits.test.y.tolist() == [0, 1, 0, 1, 0, 1]
    torch.testing.assert_close(splits.val.x, torch.from_numpy(parts["x_val"]).float())
    expected = torch.from_numpy(parts["x_train"]).float().mean(0)
    torch.testing.assert_close(splits.test.mean, expected)


def test_given_statistics_are_used(tmp_path):
    np.savez(tmp_path / "a.npz", x=RNG.integers(0, 256, (40, 3, 2, 2), dtype=np.uint8), y=np.arange(40) % 2)
    settings = ReadConfig(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert load_data(f"npz:{tmp_path / 'a.npz'}", read=settings).val.std.flatten().tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match="has 3 channels, but mean and std have 1 and 1"):
        load_data(f"npz:{tmp_path / 'a.npz'}", read=ReadConfig(mean=(0.0,), std=(1.0,)))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"y": np.arange(4)}, "lacks x_train"),
        ({"x": np.ones((4, 2))}, "lacks y; it has x"),
        ({"x": np.ones((4, 2)), "y": np.arange(3)}, "for 3 labels"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.arange(2)}, r"1 values that are not finite, first at \[\(1, 0\)\]"),
        ({"x": np.array([["a"]]), "y": np.arange(1)}, "dtype <U1"),
        ({"x": np.ones((2, 2)), "y": np.array([0.5, 1])}, "not whole"),
        ({"x": np.ones((2, 2)), "y": np.array([0, 7]), "classes": np.array(["a", "b"])}, r"without a class: \[7\]"),
        ({"x": np.ones((2, 1, 3, 3), np.uint8), "y": np.arange(2)}, "either axis 1 or axis 3"),
        ({"x": np.array([[{}]], dtype=object), "y": np.arange(1)}, "object arrays are refused"),
    ],
    ids=lambda v: "" if isinstance(v, str) else "-".join(v),
)
def test_npz_that_does_not_fit_is_named(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=text):
        read(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("scheme", ["npz", "csv"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", bytes(range(256))])
def test_foreign_bytes_are_a_data_error(tmp_path, scheme, content):
    file = tmp_path / f"a.{scheme}"
    file.write_bytes(content)
    with pytest.raises(DataError, match=str(file)):
        load_data(f"{scheme}:{file}")


def test_truncated_archives_are_a_data_error(tmp_path):
    whole = io.BytesIO()
    np.savez_compressed(whole, x=RNG.normal(size=(50, 4)), y=np.arange(50) % 2)
    file = tmp_path / "a.npz"
    for n_bytes in range(0, len(whole.getvalue()), 97):
        file.write_bytes(whole.getvalue()[:n_bytes])
        with pytest.raises(DataError, match="cannot be read"):
            read(f"npz:{file}")


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(DataError, match="is a single array"):
        read(f"npz:{tmp_path / 'a.npy'}")


@pytest.mark.parametrize(
    "source", ["npz:/nowhere.npz", "csv:/nowhere.csv", "folder:/nowhere", "npz:", "csv:", "folder:"]
)
def test_missing_sources_are_named(source):
    with pytest.raises(DataError, match=r"No (file|folder) '"):
        load_data(source)


def write_images(root, *, size=(6, 5), mode="RGB", n=4, classes=("ant", "bee")):
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j in range(n):
            shape = (*size, 3) if mode == "RGB" else size
            Image.fromarray(np.full(shape, 40 * i + j, dtype=np.uint8)).save(root / name / f"{j}.png")


def test_folder_pixels_come_back(tmp_path):
    write_images(tmp_path)
    raw = read(f"folder:{tmp_path}")
    x, y = raw.train
    assert x.shape == (8, 3, 6, 5)
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 40, 41, 42, 43]
    assert y.tolist() == [0] * 4 + [1] * 4
    assert raw.classes == ("ant", "bee")


def test_grey_folders_have_one_channel_and_resize(tmp_path):
    write_images(tmp_path, mode="L")
    assert read(f"folder:{tmp_path}", image_size=(3, 4)).train[0].shape == (8, 1, 3, 4)


def test_folder_with_parts(tmp_path):
    write_images(tmp_path / "train", n=10)
    write_images(tmp_path / "test", n=3)
    splits = load_data(f"folder:{tmp_path}")
    assert [len(p) for p in splits.parts().values()] == [17, 3, 6]
    write_images(tmp_path / "val", classes=("cow",))
    with pytest.raises(DataError, match="has not: cow"):
        load_data(f"folder:{tmp_path}")


def test_folder_problems_are_named(tmp_path):
    with pytest.raises(DataError, match="has no folders"):
        read(f"folder:{tmp_path}")
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match="without images: ant"):
        read(f"folder:{tmp_path}")
    (tmp_path / "ant" / "x.png").write_text("no image")
    with pytest.raises(DataError, match=r"1 files are no readable images: .*x\.png"):
        read(f"folder:{tmp_path}")


def test_several_sizes_ask_for_one(tmp_path):
    write_images(tmp_path)
    write_images(tmp_path, size=(9, 9), classes=("cow",))
    with pytest.raises(DataError, match=r"2 sizes: 6x5 .* Set image_size"):
        read(f"folder:{tmp_path}")


def test_truncated_image_is_named(tmp_path):
    write_images(tmp_path)
    Image.fromarray(RNG.integers(0, 255, (6, 5, 3), dtype=np.uint8)).save(tmp_path / "ant" / "0.png")
    whole = (tmp_path / "ant" / "0.png").read_bytes()
    (tmp_path / "ant" / "0.png").write_bytes(whole[:-40])
    with pytest.raises(DataError, match=r"0\.png"):
        read(f"folder:{tmp_path}")


TABLE = "a,label,b\n1,dog,2.5\n3,cat,-1e3\n5,dog,0\n"


def test_csv_numbers_come_back(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    for file in ("a.csv", "a.csv.gz"):
        raw = read(f"csv:{tmp_path / file}")
        assert raw.train[0].tolist() == [[1.0, 2.5], [3.0, -1000.0], [5.0, 0.0]]
        assert raw.train[1].tolist() == [1, 0, 1]
        assert raw.classes == ("cat", "dog")


def test_csv_label_is_the_last_column_or_the_one_named(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,kind\n1,2,10\n3,4,9\n")
    assert read(f"csv:{tmp_path / 'a.csv'}").classes == ("9", "10")  # by value, not by letter
    assert read(f"csv:{tmp_path / 'a.csv'}", label="a").train[0].tolist() == [[2.0, 10.0], [4.0, 9.0]]
    with pytest.raises(DataError, match=r"no column 'c'\. Its columns: a, b, kind"):
        read(f"csv:{tmp_path / 'a.csv'}", label="c")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,label\n1,x\n,y\nNaN,z\n", "2 missing values: line 3, column 'a'; line 4, column 'a'"),
        ("a,label\n1,x\n2\n", "2 columns, but line 3 has 1"),
        ("a,label\n1,x\nred,y\n", "1 cells that are no numbers: line 3, column 'a': 'red'"),
        ("a,label\n1e99,x\n1,y\n", "1e99 is not a finite"),
        ("1,2\n3,4\n", "has no header"),
        ("a,label\n", "no rows below its header"),
        ("label\n1\n", "one column only"),
        ('a,label\n"1,x\n', "cannot be read as CSV"),
    ],
)
def test_csv_problems_are_named(tmp_path, text, error):
    (tmp_path / "a.csv").write_text(text)
    with np.errstate(all="ignore"), pytest.raises(DataError, match=error):
        read(f"csv:{tmp_path / 'a.csv'}")


def test_too_few_samples_to_cut(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.raises(DataError, match=r"has 3 samples of 2 classes .*too few to cut off 1"):
        load_data(f"csv:{tmp_path / 'a.csv'}")


def test_unknown_schemes_and_fractions():
    with pytest.raises(DataError, match=r"No data source 'parquet'.*Known: csv, digits, folder, npz"):
        load_data("parquet:x")
    with pytest.raises(DataError, match="digits takes no address"):
        load_data("digits:x")
    with pytest.raises(ConfigError, match="sum to less than 1"):
        load_data("digits", val_fraction=0.5, test_fraction=0.5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mean": (0.0,)}, "together"),
        ({"mean": (0.0,), "std": (0.0,)}, "not positive"),
        ({"image_size": (0, 3)}, "image_size"),
    ],
)
def test_read_config_checks_itself(settings, text):
    with pytest.raises(ConfigError, match=text):
        ReadConfig(**settings)


def test_a_user_adds_a_source():
    try:

        @SOURCES.register("ones")
        def read_ones(address, read):
            n = int(address)
            return RawData(train=(torch.ones(n, 2), torch.arange(n) % 2), classes=("even", "odd"))

        assert str(load_data("ones:20")) == "13 train, 3 val, 4 test samples of shape (2,), 2 classes"
    finally:
        del SOURCES["ones"]
