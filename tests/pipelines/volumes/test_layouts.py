"""Folders of cases, and splits that never part a patient."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InputError
from pipelines.volumes.layouts import Case, check_patients, read_layout, split_by_patient


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_decathlon(tmp_path: Path) -> None:
    for name in ("liver_1", "liver_2"):
        touch(tmp_path / "imagesTr" / f"{name}.nii.gz", tmp_path / "labelsTr" / f"{name}.nii.gz")
    touch(tmp_path / "imagesTr" / "._liver_1.nii.gz")
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("liver_2", "liver_1")]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": training}))
    cases = read_layout(tmp_path)
    assert [c.name for c in cases] == ["liver_1", "liver_2"] and cases == read_layout(tmp_path / "dataset.json")
    assert cases[0].image == tmp_path / "imagesTr" / "liver_1.nii.gz" and cases[0].labels is not None
    (tmp_path / "labelsTr" / "liver_2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"dataset\.json: names liver_2"):
        read_layout(tmp_path)
    (tmp_path / "dataset.json").unlink()
    assert [c.labels is None for c in read_layout(tmp_path)] == [False, True]


def test_nnunet_channels(tmp_path: Path) -> None:
    for name in ("BRATS_1", "BRATS_2"):
        touch(*(tmp_path / "imagesTr" / f"{name}_000{i}.nii.gz" for i in range(2)))
        touch(tmp_path / "labelsTr" / f"{name}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FLAIR", "1": "T1"}, "numTraining": 2}))
    case = read_layout(tmp_path)[0]
    assert case.name == "BRATS_1" and set(case.images) == {"FLAIR", "T1"} and case.image is case.images
    training = [{"image": "./imagesTr/BRATS_1.nii.gz", "label": "./labelsTr/BRATS_1.nii.gz"}]
    about = {"modality": {"0": "FLAIR", "1": "T1"}, "training": training}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert read_layout(tmp_path)[0] == case


def test_bids(tmp_path: Path) -> None:
    for session in ("ses-1", "ses-2"):
        base = tmp_path / "sub-07" / session / "anat"
        touch(base / f"sub-07_{session}_T1w.nii.gz", base / f"sub-07_{session}_FLAIR.nii.gz")
        touch(tmp_path / "derivatives" / "sub-07" / session / f"sub-07_{session}_dseg.nii.gz")
    touch(tmp_path / "sub-08" / "anat" / "sub-08_T1w.nii.gz")
    cases = read_layout(tmp_path)
    assert [(c.name, c.patient) for c in cases] == [
        ("sub-07_ses-1", "sub-07"), ("sub-07_ses-2", "sub-07"), ("sub-08", "sub-08"),
    ]  # fmt: skip
    assert set(cases[0].images) == {"T1w", "FLAIR"} and cases[0].labels is not None and cases[2].labels is None
    touch(tmp_path / "derivatives" / "sub-07" / "sub-07_ses-1_mask.nii.gz")
    with pytest.raises(InputError, match="sub-07_ses-1 has 2 label files"):
        read_layout(tmp_path)


def test_table(tmp_path: Path) -> None:
    touch(*(tmp_path / "scans" / n for n in ("a_t1.nii.gz", "a_t2.nii.gz", "b_t1.nii.gz", "a.nii.gz")))
    (tmp_path / "pairs.csv").write_text(
        "Patient,t1,t2,mask\np1,scans/a_t1.nii.gz,scans/a_t2.nii.gz,scans/a.nii.gz\np2,scans/b_t1.nii.gz,,\n"
    )
    first, second = read_layout(tmp_path / "pairs.csv")
    assert set(first.images) == {"t1", "t2"} and first.patient == "p1" and second.labels is None
    (tmp_path / "one.csv").write_text("image,labels\nscans/a_t1.nii.gz,scans/a.nii.gz\n")
    assert read_layout(tmp_path / "one.csv")[0].images == {"": tmp_path / "scans" / "a_t1.nii.gz"}
    (tmp_path / "bad.csv").write_text("image,labels\nscans/none.nii.gz,\n")
    with pytest.raises(InputError, match=r"line 2: no such file scans/none\.nii\.gz"):
        read_layout(tmp_path / "bad.csv")
    (tmp_path / "twice.csv").write_text("image\nscans/a.nii.gz\nscans/a.nii.gz\n")
    with pytest.raises(InputError, match="named twice: a"):
        read_layout(tmp_path / "twice.csv")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected dataset\.json"):
        read_layout(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(InputError, match="holds no case"):
        read_layout(tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        read_layout(tmp_path / "none")


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(2, 5), st.integers(0, 99))
def test_no_patient_is_on_both_sides(owners: list[int], folds: int, seed: int) -> None:
    cases = [Case(f"case{i:02}", f"p{owner}", {"": Path("a.nii")}) for i, owner in enumerate(owners)]
    patients = {c.patient for c in cases}
    if len(patients) < folds:
        with pytest.raises(InputError, match="folds need"):
            split_by_patient(cases, folds)
        return
    splits = split_by_patient(cases, folds, seed=seed)
    assert splits == split_by_patient(cases[::-1], folds, seed=seed)
    held = [p for s in splits for p in s.patients]
    assert sorted(held) == sorted(patients)
    for split in [*splits, *split_by_patient(cases, share=0.3, seed=seed)]:
        assert not {c.patient for c in split.train} & {c.patient for c in split.test}
        assert sorted(c.name for c in (*split.train, *split.test)) == [c.name for c in cases]
        assert split.train and split.test


def test_a_split_that_parts_a_patient_is_refused() -> None:
    cases = [Case("a1", "a", {"": Path("1")}), Case("a2", "a", {"": Path("2")}), Case("b", "b", {"": Path("3")})]
    assert check_patients(cases, ["a1", "a2"], ["b"]).patients == ("b",)
    with pytest.raises(InputError, match="1 of the patients are on both sides"):
        check_patients(cases, ["a1"], ["a2", "b"])
    with pytest.raises(InputError, match="no case c"):
        check_patients(cases, ["c"], ["b"])
