"""Draw a small tree of every layout of data sets after its published description, and print the account of each.

    python -m bench run layouts

It makes the table of `docs/data.md`. The tests load the same trees. Images are noise of
24 x 32 pixels with a dark spot where they are defective; nothing of the data sets themselves is in them.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness import Case, Record, Suite, markdown
from pickglass.data import load_datasets

__all__ = ["TREES", "image", "mask", "save"]

SIDE = (24, 32)  # height, width


def image(seed: int, defective: bool = False, colour: bool = True) -> np.ndarray[Any, Any]:
    """Draw an image, uint8 (24, 32, 3) or (24, 32), with a dark spot where it is defective."""
    pixels = np.random.default_rng(seed).integers(100, 160, SIDE).astype(np.uint8)
    pixels[mask(seed) > 0] = 20 if defective else 120
    return np.dstack([pixels] * 3) if colour else pixels


def mask(seed: int, marked: bool = True) -> np.ndarray[Any, Any]:
    """Draw the mask of an image, uint8 (24, 32), 255 on the spot; all 0 unless ``marked``."""
    pixels = np.zeros(SIDE, np.uint8)
    top, left = 4 + seed % 9, 4 + seed % 13
    if marked:
        pixels[top : top + 5, left : left + 6] = 255
    return pixels


def save(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    """Write an image file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(pixels.tobytes(), pixels.shape, pixels.dtype.str, path.suffix.lower()))
    return path


@cache  # the tests draw the same trees a thousand times
def _encoded(content: bytes, shape: tuple[int, ...], dtype: str, suffix: str) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.frombuffer(content, dtype).reshape(shape))
    image.save(file, Image.registered_extensions()[suffix])
    return file.getvalue()


def _many(root: Path, pattern: str, seeds: range, defective: bool = False, colour: bool = True) -> None:
    for i, seed in enumerate(seeds):
        save(root / pattern.format(i), image(seed, defective, colour))


def _masks(root: Path, pattern: str, seeds: range, marked: bool = True) -> None:
    for i, seed in enumerate(seeds):
        save(root / pattern.format(i), mask(seed, marked))


GOOD, HELD, TEST, BAD = range(8), range(100, 102), range(200, 203), range(300, 303)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def mvtec_ad(root: Path) -> Path:
    """MVTec AD: a category, with licence and readme."""
    _many(root, "bottle/train/good/{:03}.png", GOOD)
    _many(root, "bottle/test/good/{:03}.png", TEST)
    _many(root, "bottle/test/broken_large/{:03}.png", BAD, True)
    _masks(root, "bottle/ground_truth/broken_large/{:03}_mask.png", BAD)
    _text(root / "bottle/license.txt", "licence")
    _text(root / "bottle/readme.txt", "readme")
    return root / "bottle"


def mvtec_ad_2(root: Path) -> Path:
    """MVTec AD 2: a category with its private tests; the bad scenes also overexposed."""
    _many(root, "can/train/good/{:03}_regular.png", GOOD)
    _many(root, "can/validation/good/{:03}_regular.png", HELD)
    _many(root, "can/test_public/good/{:03}_regular.png", TEST)
    for light in ("regular", "overexposed"):
        _many(root, "can/test_public/bad/{:03}_" + light + ".png", BAD, True)
        _masks(root, "can/test_public/ground_truth/bad/{:03}_" + light + "_mask.png", BAD)
    _many(root, "can/test_private/{:03}_regular.png", range(400, 404))
    _many(root, "can/test_private_mixed/{:03}_mixed.png", range(500, 504))
    return root / "can"


def mvtec_loco(root: Path) -> Path:
    """MVTec LOCO AD: a category; each defect of an image is a mask of its own."""
    base = root / "juice_bottle"
    _many(base, "train/good/{:03}.png", GOOD)
    _many(base, "validation/good/{:03}.png", HELD)
    _many(base, "test/good/{:03}.png", TEST)
    entries = []
    for value, kind in ((255, "logical_anomalies"), (254, "structural_anomalies")):
        _many(base, "test/" + kind + "/{:03}.png", BAD, True)
        for i, seed in enumerate(BAD):
            for part in range(1 + i % 2):
                drawn = np.where(mask(seed + part) > 0, value, 0).astype(np.uint8)
                save(base / f"ground_truth/{kind}/{i:03}/{part:03}.png", drawn)
        names = {"defect_name": kind, "pixel_value": value}
        entries.append({**names, "saturation_threshold": 0.5, "relative_saturation": True})
    _text(base / "defects_config.json", json.dumps(entries))
    return base


def mvtec_3d(root: Path) -> Path:
    """MVTec 3D-AD: a category; good test images have masks that mark nothing."""
    base = root / "bagel"
    parts = (("train/good", GOOD, False), ("validation/good", HELD, False), ("test/good", TEST, False))
    for part, seeds, bad in (*parts, ("test/crack", BAD, True)):
        _many(base, part + "/rgb/{:03}.png", seeds, bad)
        for i in range(len(seeds)):
            points = Image.fromarray(np.zeros(SIDE, np.float32))
            (base / part / "xyz").mkdir(parents=True, exist_ok=True)
            points.save(base / part / f"xyz/{i:03}.tiff")
        if part.startswith("test"):
            _masks(base, part + "/gt/{:03}.png", seeds, bad)
    _text(base / "calibration/camera_parameters.json", "{}")
    return base


def visa(root: Path) -> Path:
    """VisA as published: two objects and the split of the one-class protocol."""
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for i, seed in enumerate((*GOOD, *TEST)):
            path = f"{name}/Data/Images/Normal/{i:04}.JPG"
            save(root / path, image(seed))
            lines.append(f"{name},{'train' if i < len(GOOD) else 'test'},normal,{path},")
        for i, seed in enumerate(BAD):
            path, truth = f"{name}/Data/Images/Anomaly/{i:03}.JPG", f"{name}/Data/Masks/Anomaly/{i:03}.png"
            save(root / path, image(seed, True))
            save(root / truth, (mask(seed) > 0).astype(np.uint8))
            lines.append(f"{name},test,anomaly,{path},{truth}")
        _text(root / name / "image_anno.csv", "image,label,mask\n")
    _text(root / "split_csv/1cls.csv", "\n".join(lines))
    _text(root / "split_csv/2cls_fewshot.csv", "object,split,label,image,mask\n")
    return root


def visa_converted(root: Path) -> Path:
    """VisA after its usual conversion: an object in MVTec AD's layout, its photographs JPEG."""
    base = root / "candle"
    _many(base, "train/good/{:04}.JPG", GOOD)
    _many(base, "test/good/{:04}.JPG", TEST)
    _many(base, "test/bad/{:03}.JPG", BAD, True)
    _masks(base, "ground_truth/bad/{:03}.png", BAD)
    return base


def real_iad(root: Path) -> Path:
    """Real-IAD: a category of one resolution, two of its five views, and the split in a JSON file."""
    base = root / "realiad_256/audiojack"
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for part in range(5):
        for view in (1, 2):
            name = f"OK/S{part:04}/audiojack_{part:04}_OK_C{view}_20231.jpg"
            save(base / name, image(10 * part + view))
            role = "train" if part < 4 else "test"
            entries[role].append(
                {"category": "audiojack", "anomaly_class": "OK", "image_path": name, "mask_path": None}
            )
    for part in range(2):
        for view in (1, 2):
            stem = f"NG/BX/S{part:04}/audiojack_{part:04}_NG_BX_C{view}_20231"
            save(base / f"{stem}.jpg", image(300 + part, True))
            save(base / f"{stem}.png", mask(300 + part))
            truth = {"image_path": f"{stem}.jpg", "mask_path": f"{stem}.png"}
            entries["test"].append({"category": "audiojack", "anomaly_class": "BX", **truth})
    meta = {"normal_class": "OK", "prefix": "audiojack/"}
    _text(root / "realiad_jsons/audiojack.json", json.dumps({"meta": meta, **entries}))
    return base


def btad(root: Path) -> Path:
    """BTAD: a product; folders are called ok and ko, images are BMP files."""
    _many(root, "01/train/ok/{:04}.bmp", GOOD)
    _many(root, "01/test/ok/{:04}.bmp", TEST)
    _many(root, "01/test/ko/{:04}.bmp", BAD, True)
    _masks(root, "01/ground_truth/ko/{:04}.png", BAD)
    return root / "01"


def mpdd(root: Path) -> Path:
    """MPDD: a part, laid out as MVTec AD."""
    _many(root, "tubes/train/good/{:03}.png", GOOD)
    _many(root, "tubes/test/good/{:03}.png", TEST)
    _many(root, "tubes/test/anomalous/{:03}.png", BAD, True)
    _masks(root, "tubes/ground_truth/anomalous/{:03}_mask.png", BAD)
    return root / "tubes"


def kolektor_sdd(root: Path) -> Path:
    """KolektorSDD: a folder for each part, a label beside each image."""
    for part in range(1, 7):
        for i in range(3):
            bad = part > 4 and i == 1
            save(root / f"kos{part:02}/Part{i}.jpg", image(10 * part + i, bad, colour=False))
            save(root / f"kos{part:02}/Part{i}_label.bmp", mask(10 * part + i, bad))
    return root


def kolektor_sdd2(root: Path) -> Path:
    """KolektorSDD2: masks beside the images, defective images in training too."""
    for i in range(10):
        bad = i >= 8
        save(root / f"train/{10000 + i}.png", image(i, bad))
        save(root / f"train/{10000 + i}_GT.png", mask(i, bad))
    for i in range(6):
        bad = i % 2 == 0
        save(root / f"test/{20000 + i}.png", image(100 + i, bad))
        save(root / f"test/{20000 + i}_GT.png", mask(100 + i, bad))
    return root


def aitex(root: Path) -> Path:
    """AITEX: two fabrics in one tree, one strip with two masks."""
    for folder, fabric, first in (("2306881-210020u", "00", 0), ("2311694-1930c7u", "04", 20)):
        for i in range(first, first + 6):
            save(root / f"NODefect_images/{folder}/{i:04}_000_{fabric}.png", image(i, colour=False))
    for i, defect, fabric in ((40, "019", "04"), (41, "002", "00")):
        save(root / f"Defect_images/{i:04}_{defect}_{fabric}.png", image(i, True, colour=False))
    for part in (1, 2):
        save(root / f"Mask_images/0040_019_04_mask{part}.png", mask(40 + part))
    save(root / "Mask_images/0041_002_00_mask.png", mask(41))
    return root


def dagm(root: Path) -> Path:
    """DAGM 2007: a class; lists of labels, masks of the defective images."""
    base = root / "Class1"
    for split, first in (("Train", 576), ("Test", 1)):
        lines = ["1"]
        for i in range(first, first + 8):
            bad = i >= first + 6
            save(base / f"{split}/{i:04}.PNG", image(i, bad, colour=False))
            if bad:
                save(base / f"{split}/Label/{i:04}_label.PNG", mask(i))
            lines.append(f"{i}\t{int(bad)}\t{i:04}.PNG\t0\t{f'{i:04}_label.PNG' if bad else '0'}")
        _text(base / f"{split}/Label/Labels.txt", "\n".join(lines))
    return base


def dagm_older(root: Path) -> Path:
    """DAGM 2007 in its older form: ellipses in a text file."""
    _many(root, "Class1/{}.png", GOOD, colour=False)
    lines = []
    for i, seed in enumerate(BAD, start=1):
        save(root / f"Class1_def/{i}.png", image(seed, True, colour=False))
        top, left = 4 + seed % 9, 4 + seed % 13
        lines.append(f"{i}\t3.5\t3.0\t0.0\t{left + 3}\t{top + 2.5}")
    _text(root / "Class1_def/labels.txt", "\n".join(lines))
    return root


def autovi(root: Path) -> Path:
    """AutoVI: a category; a folder of masks for each defective image."""
    base = root / "pipe_clip"
    _many(base, "train/good/{:04}.png", GOOD)
    _many(base, "test/good/{:04}.png", TEST)
    _many(base, "test/unclipped/{:04}.png", BAD, True)
    _masks(base, "ground_truth/unclipped/{:04}/0000.png", BAD)
    return base


def vad(root: Path) -> Path:
    """VAD: defective images in training, no masks."""
    for split in ("train", "test"):
        _many(root, f"vad/{split}/good/" + "{:04}.png", GOOD if split == "train" else TEST)
        _many(root, f"vad/{split}/bad/" + "{:04}.png", BAD if split == "test" else range(600, 602), True)
    return root / "vad"


def bmad(root: Path) -> Path:
    """BMAD: a category with masks; a validation split with defective images."""
    base = root / "Brain_AD"
    _many(base, "train/good/{:05}.png", GOOD)
    for split, good, bad in (("valid", HELD, range(700, 702)), ("test", TEST, BAD)):
        _many(base, split + "/good/img/{:05}.png", good)
        _masks(base, split + "/good/label/{:05}.png", good, marked=False)
        _many(base, split + "/Ungood/img/{:05}.png", bad, True)
        _masks(base, split + "/Ungood/label/{:05}.png", bad)
    return base


def kaputt(root: Path) -> Path:
    """Kaputt: three splits in Parquet files; masks are of the items, not of defects."""
    import pyarrow
    from pyarrow import parquet

    for split, seeds in (("train", range(8)), ("validation", range(20, 23)), ("test", range(30, 36))):
        columns: dict[str, list[Any]] = {name: [] for name in ("capture_id", "item_identifier", "defect")}
        columns |= {name: [] for name in ("defect_types", "query_image", "query_crop", "query_mask")}
        for seed in seeds:
            bad = seed % 3 == 2
            paths = {kind: f"data/{split}/query-data/{kind}/{seed}" for kind in ("image", "crop", "mask")}
            save(root / f"query-image/{paths['image']}.jpg", image(seed, bad))
            save(root / f"query-crop/{paths['crop']}.jpg", image(seed, bad)[4:20, 4:28])
            save(root / f"query-mask/{paths['mask']}.png", np.full(SIDE, 255, np.uint8))
            values = [str(seed), f"item{seed // 2}", bad, "deformation" if bad else "", f"{paths['image']}.jpg"]
            for name, value in zip(columns, [*values, f"{paths['crop']}.jpg", f"{paths['mask']}.png"], strict=True):
                columns[name].append(value)
        (root / "datasets").mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns), root / f"datasets/query-{split}.parquet")
        parquet.write_table(pyarrow.table({"item_identifier": ["item0"]}), root / f"datasets/reference-{split}.parquet")
        save(root / f"reference-image/data/{split}/reference-data/image/{split}.jpg", image(0))
    return root


def severstal(root: Path) -> Path:
    """Severstal: run lengths down the columns, counted from 1; two classes in one image."""
    lines = ["ImageId,ClassId,EncodedPixels"]
    for i in range(8):
        bad = i >= 6
        save(root / f"train_images/{i:04}.jpg", image(i, bad, colour=False))
        for kind in range(1, 1 + (i - 5 if bad else 0)):
            lines.append(f"{i:04}.jpg,{kind},{_runs(mask(i + kind))}")
    _many(root, "test_images/{:04}.jpg", TEST, colour=False)
    _text(root / "train.csv", "\n".join(lines))
    _text(root / "sample_submission.csv", "ImageId,EncodedPixels,ClassId\n")
    return root


def _runs(pixels: np.ndarray[Any, Any]) -> str:
    flat = np.concatenate([[0], (pixels > 0).astype(np.int8).ravel(order="F"), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) > 0), np.flatnonzero(np.diff(flat) < 0)
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))


def deeppcb(root: Path) -> Path:
    """DeepPCB: pairs of template and board, boxes in a text file for each."""
    lines = []
    for i in range(5):
        stem = f"group00041/00041/0004100{i}"
        save(root / f"{stem}_temp.jpg", image(i, colour=False))
        save(root / f"{stem}_test.jpg", image(i, True, colour=False))
        _text(root / f"group00041/00041_not/0004100{i}.txt", f"4 4 10 9 {1 + i}\n")
        lines.append(f"{stem}.jpg group00041/00041_not/0004100{i}.txt")
    _text(root / "trainval.txt", "\n".join(lines[:3]))
    _text(root / "test.txt", "\n".join(lines[3:]))
    return root


def neu_det(root: Path) -> Path:
    """NEU-DET: all images are defective, with boxes in Pascal VOC's format."""
    for kind in ("crazing", "scratches"):
        for i in range(3):
            save(root / f"IMAGES/{kind}_{i}.jpg", image(i, True, colour=False))
            box = "<xmin>4</xmin><ymin>4</ymin><xmax>10</xmax><ymax>9</ymax>"
            size = f"<width>{SIDE[1]}</width><height>{SIDE[0]}</height><depth>1</depth>"
            item = f"<object><name>{kind}</name><bndbox>{box}</bndbox></object>"
            text = f"<annotation><filename>{kind}_{i}.jpg</filename><size>{size}</size>{item}</annotation>"
            _text(root / f"ANNOTATIONS/{kind}_{i}.xml", text)
    return root


def three_cad(root: Path) -> Path:
    """3CAD: a product, laid out as MVTec AD."""
    base = root / "Copper_Stator"
    _many(base, "train/good/{:04}.png", GOOD)
    _many(base, "test/good/{:04}.png", TEST)
    _many(base, "test/bruise/{:04}.png", BAD, True)
    _masks(base, "ground_truth/bruise/{:04}.png", BAD)
    return base


def labelme(root: Path) -> Path:
    """Files of labelme: a JSON file beside each image, without shapes where there is nothing to see."""
    for i in range(8):
        bad = i >= 6
        save(root / f"{i}.png", image(i, bad))
        points = [[4, 4], [12, 4], [12, 12]]
        shapes = [{"label": "scratch", "points": points, "shape_type": "polygon"}] if bad else []
        about: dict[str, Any] = {"version": "5", "flags": {}, "imagePath": f"{i}.png", "imageData": None}
        _text(
            root / f"{i}.json", json.dumps({**about, "shapes": shapes, "imageHeight": SIDE[0], "imageWidth": SIDE[1]})
        )
    return root


def coco(root: Path) -> Path:
    """COCO: one list of all images, polygons and run lengths, an image that it does not name."""
    images, annotations = [], []
    for i in range(8):
        save(root / f"images/{i}.png", image(i, i >= 6))
        images.append({"id": i, "file_name": f"{i}.png", "width": SIDE[1], "height": SIDE[0]})
    save(root / "images/unnamed.png", image(9))
    for i in (6, 7):
        outline = [[4.0, 4.0, 12.0, 4.0, 12.0, 12.0]]
        entry = {"id": i, "image_id": i, "category_id": 1, "segmentation": outline, "bbox": [4, 4, 8, 8], "area": 32}
        annotations.append({**entry, "iscrowd": 0})
    lists = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dent"}]}
    _text(root / "annotations/instances_default.json", json.dumps(lists))
    return root


def yolo(root: Path) -> Path:
    """YOLO: images and labels in two trees with splits, boxes as shares of the image."""
    for split, seeds in (("train", range(8)), ("val", range(10, 13))):
        for seed in seeds:
            bad = seed % 4 == 3
            save(root / f"images/{split}/{seed}.jpg", image(seed, bad))
            _text(root / f"labels/{split}/{seed}.txt", "0 0.5 0.5 0.2 0.3\n" if bad else "")
    _text(root / "data.yaml", "train: images/train\nval: images/val\nnames:\n  0: dent\n")
    return root


def table(root: Path) -> Path:
    """A table as a spreadsheet exports it: semicolons, a byte order mark, OK and NG."""
    lines = ["File;Class;Mask"]
    for i in range(10):
        bad = i >= 8
        save(root / f"pictures/{i}.png", image(i, bad))
        if bad:
            save(root / f"pictures/m{i}.png", mask(i))
        lines.append(f"pictures\\{i}.png;{'NG' if bad else 'OK'};{f'pictures/m{i}.png' if bad else ''}")
    (root / "lot.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode("utf-8"))
    return root / "lot.csv"


def folder(root: Path) -> Path:
    """Folders of good and of defective parts, with masks."""
    _many(root, "good/{}.png", GOOD)
    _many(root, "hole/{}.png", BAD, True)
    _masks(root, "masks/hole/{}.png", BAD)
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "MVTec AD": mvtec_ad,
    "MVTec AD 2": mvtec_ad_2,
    "MVTec LOCO AD": mvtec_loco,
    "MVTec 3D-AD": mvtec_3d,
    "VisA": visa,
    "VisA, converted": visa_converted,
    "Real-IAD": real_iad,
    "BTAD": btad,
    "MPDD": mpdd,
    "KolektorSDD": kolektor_sdd,
    "KolektorSDD2": kolektor_sdd2,
    "AITEX": aitex,
    "DAGM 2007": dagm,
    "DAGM 2007, older": dagm_older,
    "AutoVI": autovi,
    "VAD": vad,
    "BMAD": bmad,
    "Kaputt": kaputt,
    "Severstal": severstal,
    "DeepPCB": deeppcb,
    "NEU-DET": neu_det,
    "3CAD": three_cad,
    "labelme": labelme,
    "COCO": coco,
    "YOLO": yolo,
    "a table": table,
    "folders": folder,
}
"""Data set -> what draws its tree into a folder and returns what to load."""


def account(name: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as temporary:
        sets = load_datasets(TREES[name](Path(temporary)))
    first = next(iter(sets.values()))
    return {"layout": str(first.layout), "account": " ".join(text.strip() for text in first.account.sentences())}


def cases(_: argparse.Namespace) -> Iterator[Case]:
    for name in TREES:
        yield Case({"data": name}, partial(account, name))


def table_of_layouts(rows: list[Record]) -> str:
    heads = ["data set", "layout", "what becomes of its files"]
    return markdown(heads, [[row["data"], f"`{row['layout']}`", row["account"]] for row in rows])


SUITE = Suite(cases, tables={"": table_of_layouts}, weights=())
