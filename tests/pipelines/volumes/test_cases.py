"""Cases of a run config: found in folders, tables and patterns; dealt out by patient and never otherwise."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InputError
from pipelines.config import DataItem, RunConfig, SplitOptions
from pipelines.volumes.cases import ROLES, CaseSplit, LabelledCase, describe, gather_cases, split_cases
from pipelines.volumes.layouts import Case
from tests.pipelines.volumes.make_cases import adapter, balls, decathlon, save
from tests.pipelines.volumes.make_dicom import stack


def config(*items: DataItem, **settings) -> RunConfig:
    return RunConfig(adapter=adapter().to_dict(), data=items, baseline=None, **settings)


def one(name: str, patient: str, role: str = "auto") -> LabelledCase:
    return LabelledCase(Case(name, patient, {"": Path(f"{name}.nii")}, Path("labels.nii")), role)


def patients(cases: tuple[LabelledCase, ...]) -> set[str]:
    return {case.case.patient for case in cases}


def test_a_layout_gives_its_labelled_cases(tmp_path: Path) -> None:
    decathlon(tmp_path, 3)
    save(tmp_path / "imagesTr" / "unlabelled.nii.gz", balls())
    found = gather_cases(config(DataItem(source=str(tmp_path))))
    assert [c.case.name for c in found] == ["case_0", "case_1", "case_2"]
    assert len(patients(tuple(found))) == 3
    grouped = gather_cases(config(DataItem(source=str(tmp_path), patient=r"case_([01]|2)")))
    assert [c.case.patient for c in grouped] == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"the name case_2 does not fit"):
        gather_cases(config(DataItem(source=str(tmp_path), patient=r"case_([01])")))
    with pytest.raises(InputError, match="not a regular expression"):
        gather_cases(config(DataItem(source=str(tmp_path), patient="(")))


def test_a_pattern_gives_an_image_and_labels_each(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "CT.nii.gz", balls())
        save(tmp_path / name / "CT_mask.nii.gz", balls())
        save(tmp_path / name / "._CT.nii.gz", balls())
    item = DataItem(source=f"{tmp_path}/*/CT.nii.gz", labels="{folder}/{stem}_mask.nii.gz", patient="{folder}")
    found = gather_cases(config(item))
    assert [c.case.name for c in found] == ["a/CT", "b/CT"] and [c.case.patient for c in found] == ["a", "b"]
    assert [c.labels for c in found] == [tmp_path / n / "CT_mask.nii.gz" for n in "ab"]
    alone = gather_cases(config(item.model_copy(update={"patient": None})))
    assert [c.case.patient for c in alone] == ["a", "b"], "equal names: the folder is the patient"
    with pytest.raises(InputError, match="no such label file"):
        gather_cases(config(item.model_copy(update={"labels": "{folder}/{stem}_seg.nii.gz"})))
    with pytest.raises(InputError, match="no file fits"):
        gather_cases(config(DataItem(source=f"{tmp_path}/*/MR.nii.gz", labels="x")))
    with pytest.raises(InputError, match="named twice"):
        gather_cases(config(item, item))


def test_whose_a_scan_is_its_header_or_its_bids_name_says(tmp_path: Path) -> None:
    for name in ("visit1", "visit2"):
        stack(tmp_path / name, balls().astype("uint16"))
    save(tmp_path / "sub-07_ses-2_T1w.nii.gz", balls())
    labels = str(save(tmp_path / "labels.nii.gz", balls()))
    items = [DataItem(source=str(tmp_path / n), labels=labels) for n in ("visit1", "visit2", "sub-07_ses-2_T1w.nii.gz")]
    first, second, bids = (c.case.patient for c in gather_cases(config(*items)))
    assert first == second and first not in ("visit1", "anonymous") and bids == "sub-07"


def test_patterns_of_volumes_stay_patterns(tmp_path: Path) -> None:
    """File names are patients' names: an expanded config would carry them to MLflow and Prefect."""
    import yaml

    from pipelines.config import load_config

    raw = {"adapter": adapter().to_dict(), "data": [{"source": "*/CT.nii.gz", "labels": "{folder}/mask.nii.gz"}]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    (item,) = load_config(tmp_path / "run.yaml").data
    assert item.source == f"{tmp_path}/*/CT.nii.gz"


@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["auto", "auto", "auto", *ROLES])), min_size=2, max_size=24),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(2, 4)),
    st.sampled_from([0.0, 0.2, 0.4]),
)
def test_no_patient_is_on_two_sides(
    studies: list[tuple[int, str]], seed: int, folds: int | None, validation: float
) -> None:
    cases = [one(f"case{n}", f"p{patient}", role) for n, (patient, role) in enumerate(studies)]
    roles: dict[str, set[str]] = {}
    for case in cases:
        if case.role != "auto":
            roles.setdefault(case.case.patient, set()).add(case.role)
    options = SplitOptions(seed=seed, folds=folds, validation=validation)
    try:
        splits = [split_cases(cases, options, fold) for fold in range(folds or 1)]
    except InputError as error:
        torn = any(len(found) > 1 for found in roles.values())
        free = patients(tuple(cases)) - set(roles)
        assert torn or len(free) < (folds or 0), error
        return
    held: Counter[str] = Counter()
    for split in splits:
        parts = [patients(getattr(split, role)) for role in ROLES]
        assert sum(len(part) for part in parts) == len(patients(tuple(cases))) == len(set().union(*parts))
        assert sum(len(getattr(split, role)) for role in ROLES) == len(cases)
        for role, part in zip(ROLES, parts):
            assert all(found == {role} for patient, found in roles.items() if patient in part)
        held.update(parts[2])
    if folds is not None:
        free = patients(tuple(cases)) - set(roles)
        assert all(held[patient] == 1 for patient in free), "every patient is held out once"
    assert splits[0] == split_cases(cases, options, 0)


def test_a_torn_patient_is_an_error_without_its_name() -> None:
    cases = [one("a", "Doe", "train"), one("b", "Roe"), one("c", "Doe", "test")]
    with pytest.raises(
        InputError, match="case 3 of 3 has role test, but another case of the same patient has train"
    ) as e:
        split_cases(cases, SplitOptions())
    assert "Doe" not in str(e.value)
    with pytest.raises(InputError, match="two parts, train and test") as e:
        CaseSplit((cases[0],), (), (cases[2],))
    assert "Doe" not in str(e.value)


def test_shares_count_patients() -> None:
    cases = [one(f"case{n}", f"p{n // 2}") for n in range(20)]
    split = split_cases(cases, SplitOptions(validation=0.2, test=0.3))
    assert [len(patients(getattr(split, role))) for role in ROLES] == [5, 2, 3]
    assert describe(split) == "train 10 of 5 patients, validation 4 of 2 patients, test 6 of 3 patients"
    assert not split_cases(cases, SplitOptions(validation=0, test=0)).test


@pytest.mark.parametrize(
    ("options", "message"), [({"fold": 0}, "needs `folds`"), ({"folds": 3, "fold": 3}, "needs `folds`")]
)
def test_a_fold_that_is_none(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitOptions(**options)
