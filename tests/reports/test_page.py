"""What all report pages share."""

import importlib.resources
import re

import pytest

from medsd_jax.reports.page import place


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("/home/ada/runs/classifier/data:validation", "classifier/data:validation"),
        ("classifier=/home/ada/runs/classifier", "classifier=runs/classifier"),
        ("latent=CompVis/stable-diffusion-v1-4", "latent=CompVis/stable-diffusion-v1-4"),
        ("runs/look", "runs/look"),
        ("/home/ada/look", "look"),
        ("C:\\Users\\ada\\look", "look"),
        ("/look", "look"),
        ("C:\\Users\\ada\\runs\\look", "runs/look"),
        ("thumbnail", "thumbnail"),
        ("a=b/c", "a=b/c"),
    ],
)
def test_absolute_paths_lose_their_beginning(where, shown):
    assert place(where) == shown


@pytest.mark.parametrize("name", ["evaluation", "reconstruction", "chambon2022"])
def test_every_table_scrolls_by_itself_where_it_does_not_fit(name):
    folder = importlib.resources.files("medsd_jax.reports") / "templates"
    text = (folder / f"{name}.html.jinja").read_text(encoding="utf-8")
    assert re.findall(r"<table", text)
    for before in re.split(r"<table", text)[:-1]:
        assert before.rstrip().endswith('<div class="scroll">')
    assert ".scroll { overflow-x: auto; }" in (folder / "report.css").read_text(encoding="utf-8")
