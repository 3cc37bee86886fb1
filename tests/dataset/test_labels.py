"""labels.csv as people's tools write it: read where it can be meant in one way, else refused by line, column, value."""

import unicodedata

import pytest
from made import by_number, numbered, refusal

from dataset import registry
from dataset.labels import folder_classes, read_labels, to_classes
from utils import CommandError

NAMES = [f"{k:05d}.png" for k in range(12)]
LABELS = [k % 3 for k in range(12)]
MIXED = [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 4, 6]  # an order that is no order


def table(head: str, line: str, names=NAMES) -> str:
    """A table whose lines are `line` filled with a row number i, a name n and a label l, in another order."""
    lines = [line.format(i=i, n=names[k], l=LABELS[k], k=k) for i, k in enumerate(MIXED)]
    return head + "\n" + "\n".join(lines)


def labels_of(tmp_path, text: str | bytes, names=NAMES) -> list:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return to_classes(path, read_labels(path, list(names)))


@pytest.mark.parametrize("text, names", [
    (table("file,label", "{n},{l}"), NAMES),
    (table("file;label", "{n};{l}"), NAMES),
    (table("file\tlabel", "{n}\t{l}"), NAMES),
    (table("file,label", "{n},{l}") + "\n\n", NAMES),
    (table("file,label", "{n},{l}") + "\n,\n,\n", NAMES),
    (table("file,label,", "{n},{l},"), NAMES),
    (table("file,label", "{n},{l},"), NAMES),
    (table('"file","label"', '"{n}","{l}"'), NAMES),
    (table("file,label", "./{n},{l}"), NAMES),
    (table("file,label", "images/{n},{l}"), NAMES),
    (table("file,label", "/home/me/faces/{n},{l}"), NAMES),
    (table("file,label", r"C:\faces\{n},{l}"), NAMES),
    (table("file,label", r"a\{n},{l}", NAMES), [f"a/{name}" for name in NAMES]),
    (table("file,label", "{n},{l}"), [name.upper() for name in NAMES]),
    (table("label,file", "{l},{n}"), NAMES),
    (table("number,label", "{k},{l}"), NAMES),
    (table("index,label", "{k},{l}"), NAMES),
    (table(",file,label", "{i},{n},{l}"), NAMES),
    (table("Unnamed: 0,file,label", "{i},{n},{l}"), NAMES),
    (table("index,file,label", "{i},{n},{l}"), NAMES),
    (table(",image_number,label", "{i},{k},{l}"), NAMES),
    (table("Unnamed: 0,image_number,label", "{i},{k},{l}"), NAMES),
    (table(",label", "{n},{l}"), NAMES),  # pandas again: the names are its index
    (table("file,label", "{n},{l}").encode("utf-16"), NAMES),
    (table("file,label", "{n},{l}").encode("utf-8-sig"), NAMES),
    (table("file,label", "{n},{l}.0"), NAMES),
    (table("file,label", "{n},{l}").replace(",1\n", ",1.0\n", 2), NAMES),
    (table("file,label", "{n},{l}", [f"é{name}" for name in NAMES]),
     [unicodedata.normalize("NFD", f"é{name}") for name in NAMES]),
    (table("file,label", "sub/{n},{l}"), [f"sub/{name}" for name in NAMES]),
    (table("file,label", "{n},{l}"), [f"{'ab'[k % 2]}/{name}" for k, name in enumerate(NAMES)]),
    (table("file,label", '"{n}",{l}', [f"a, b {k}.png" for k in range(12)]), [f"a, b {k}.png" for k in range(12)]),
])
def test_a_table_that_can_be_meant_in_one_way_is_read_so(tmp_path, text, names):
    labels, details = labels_of(tmp_path, text, names)
    assert labels[:, 0].tolist() == LABELS
    assert [float(name) for name in details["label_names"]] == [0, 1, 2] and details["labels"] == "class"


RIGHT = table("file,label", "{n},{l}")


@pytest.mark.parametrize("text, culprits", [
    (RIGHT.replace("00002.png", "00020.png"), ["line 3, column 'file'", "'00020.png'"]),
    (RIGHT.replace("00002.png", "00011.png"), ["line 4, column 'file'", "'00011.png'", "line 3"]),
    (RIGHT.replace("00002.png", "00002.jpg"), ["line 3, column 'file'", "'00002.jpg'", "00002.png"]),
    (RIGHT.replace(".png", ".jpg"), ["line 2, column 'file'", "'00007.jpg'"]),
    (RIGHT.replace("00002.png", "b/00002.png"), ["line 3, column 'file'", "'b/00002.png'", "line 2"]),
    (RIGHT.replace("00002.png,2", "00002.png,"), ["line 3, column 'label'", "empty"]),
    (RIGHT.replace("00002.png,2", "00002.png,NA"), ["line 3, column 'label'", "'NA'"]),
    (RIGHT.replace("00002.png,2", "00002.png,NaN"), ["line 3, column 'label'", "'NaN'"]),
    (RIGHT.replace("00002.png,2", "00002.png,<NA>"), ["line 3, column 'label'", "'<NA>'"]),
    (RIGHT.replace("00002.png,2", "00002.png"), ["line 3", "1 cells", "2"]),
    (RIGHT.replace("00002.png,2", "00002.png,2,5"), ["line 3", "3 cells", "'5'"]),
    (RIGHT.replace("00002.png,2\n", ""), ["00002.png", "11 lines", "12 images"]),
    (RIGHT.split("\n", 1)[1], ["line 1", "'00007.png'", "header"]),
    ("file,label\n", ["no table"]),
    ("file,label\n\n", ["no table"]),
    (table("file", "{n}"), ["line 1", "one column"]),
    (table(",label", "{i},{l}"), ["line 1", "row numbers"]),
    (table("Unnamed: 0,label", "{k},{l}"), ["line 1", "row numbers"]),
    (table("first,second,label", "{i},{k},{l}"), ["line 1", "'first'", "'second'"]),
    (table("file,a,a", "{n},{l},{l}"), ["line 1", "two columns", "'a'"]),
    (table("file,a,", "{n},{l},x"), ["line 1", "column 3"]),
    (table(",file", "{i},{n}"), ["line 1", "no column of labels", "'file'"]),
    (RIGHT.replace("00002.png,2", '"00002.png,2'), ["labels.csv, line"]),
    (RIGHT.encode() + b"\n\xff\xfe\xff,3", ["not a readable text file"]),
])
def test_each_mistake_has_a_line_of_its_own(tmp_path, text, culprits):
    with pytest.raises(CommandError) as caught:
        labels_of(tmp_path, text)
    message = str(caught.value)
    assert "labels.csv" in message and len(message.splitlines()) == 1
    assert [culprit for culprit in culprits if culprit not in message] == []


def test_a_name_that_two_images_have_needs_its_path(tmp_path):
    names = ["a/1.png", "b/1.png", "c/2.png"]
    with pytest.raises(CommandError, match=r"line 2, column 'file': '1.png' may be a/1.png or b/1.png"):
        labels_of(tmp_path, "file,label\n1.png,0\nb/1.png,1\n2.png,1\n", names)
    labels, _ = labels_of(tmp_path, "file,label\na/1.png,0\nb/1.png,1\n2.png,1\n", names)
    assert labels[:, 0].tolist() == [0, 1, 1]


def test_equal_numbers_are_one_class_and_words_their_own(tmp_path):
    names = ["a.png", "b.png", "c.png", "d.png"]
    text = "file,number,word,big\na,10,yes,9007199254740992\nb,2.0,no,9007199254740993\nc,1e1,no,1\nd,2,no,1\n"
    labels, details = labels_of(tmp_path, text, names)
    assert labels.tolist() == [[1, 1, 1], [0, 0, 2], [1, 0, 0], [0, 0, 0]]
    assert details["value_names"] == (("2", "10"), ("no", "yes"), ("1", "9007199254740992", "9007199254740993"))


def test_folders_are_classes_where_every_image_lies_in_one():
    labels, details = folder_classes(["all/cat/1.png", "all/dog/x/1.png", "all/cat/2.png"])
    assert labels[:, 0].tolist() == [0, 1, 0] and details["label_names"] == ("cat", "dog")
    skipped = ["train/b/1.png", "test/a/1.png", "train/a/1.png"]
    assert folder_classes(skipped, frozenset({"train", "test"}))[0][:, 0].tolist() == [1, 0, 0]
    for none in (["1.png", "cat/2.png"], ["1.png", "2.png"], ["a/1.png", "b/1.png"], ["all/1.png", "all/2.png"]):
        assert folder_classes(none) is None


def test_folders_of_classes_give_labels_until_there_is_a_table(tmp_path):
    numbered(tmp_path, [f"{'ab'[k % 2]}/{k}.png" for k in range(12)])
    assert all(label == [number % 2] for number, (_, label) in by_number("folder", tmp_path).items())
    assert registry.load("folder", "train", root=tmp_path, size=8).label_names == ("a", "b")
    (tmp_path / "Labels.CSV").write_text("file,kind\n" + "".join(f"{k}.png,{k % 3}\n" for k in range(12)))
    assert all(label == [number % 3] for number, (_, label) in by_number("folder", tmp_path).items())
    (tmp_path / "labels.csv").write_text("file,kind\n")
    assert "two tables" in refusal("folder", "train", root=tmp_path)
