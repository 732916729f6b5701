"""The tables of several groups say the same things under many names."""

import json

from medsd_jax.evaluation.images.tables import read_table


def rows_of(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return read_table(tmp_path / name)


def test_chexpert(tmp_path):
    first, second = rows_of(
        tmp_path,
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pleural Effusion\n"
        "a/view1.jpg,Female,68,Frontal,AP,1.0,,-1.0\nb/view1.jpg,Male,7,Frontal,PA,,0.0,1.0\n",
    )
    assert first.labels == {"sex": "F", "age": 68, "view": "AP", "no_finding": 1}
    assert second.labels == {
        "sex": "M", "age": 7, "view": "PA", "edema": 0, "pleural_effusion": 1
    }  # fmt: skip
    assert second.path == tmp_path / "b/view1.jpg"


def test_nih(tmp_path):
    (row,) = rows_of(
        tmp_path, "path,Follow-up #,Patient ID,Patient Age,Patient Gender\nx.png,3,12,057Y,F\n"
    )
    assert row.patient_id == "12" and row.labels == {"sex": "F", "age": 57}


def test_chexgenbench(tmp_path):
    labels = "\"{'Pleural Effusion': 1.0, 'Edema': None, 'No Finding': 0}\""
    (row,) = rows_of(
        tmp_path,
        "id,synthetic_filename,annotated_prompt,chexpert_labels\n"
        f"7,S_7.png,An effusion.,{labels}\n",
    )
    assert (row.id, row.text) == ("7", "An effusion.")
    assert row.labels == {"pleural_effusion": 1, "no_finding": 0}


def test_samples_hold_settings_and_the_row_of_their_prompt(tmp_path):
    sample = {
        "file": "0.png", "prompt": "p", "seed": 1, "eta": 0.0, "start_latents": None,
        "row": {"id": "a", "path": "real.png", "pleural_effusion": "1", "age": "40", "site": "x"},
    }  # fmt: skip
    lines = [json.dumps(sample), json.dumps({"file": "1.png", "prompt": "q", "seed": 0})]
    first, second = rows_of(tmp_path, "\n".join(lines), "samples.jsonl")
    assert first.path == tmp_path / "0.png" and (first.text, first.id) == ("p", "a")
    assert first.labels == {"pleural_effusion": 1, "age": 40}
    assert second.labels == {} and second.id == ""


def test_a_column_with_other_numbers_is_no_finding(tmp_path):
    rows = rows_of(tmp_path, "path,visits,nodule\na,1,1\nb,2,\nc,0,0\n")
    assert [row.labels for row in rows] == [{"nodule": 1}, {}, {"nodule": 0}]
