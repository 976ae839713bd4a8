"""Recipes: written from the code's own defaults, read strictly."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import pytest

from secateur.allocate import Budget, Global
from secateur.compensation import CompensateConfig
from secateur.criteria import CRITERIA, make_criterion
from secateur.data import ReadConfig
from secateur.errors import ConfigError, FileError, SecateurError
from secateur.planning import PruneConfig
from secateur.recipe import INTRO, ModelConfig, Recipe, default_recipe, read_recipe, read_recipe_text, write_recipe
from secateur.steps import Activate, Distill, Drop, Factorize, Finetune, Prune, Quantize, Share, Sparsify, Step
from secateur.train import TrainConfig
from secateur.train.augment import ShiftFlip

MINIMAL = "[model]\n[data]\n[budget]\nmacs = 0.5\n"
RECIPES = {
    "demo": Recipe(),
    "bare": Recipe(train=None, finetune=None, budget=Budget(params=0.25, width=0.5)),
    "odd text": Recipe(
        train=None, model=ModelConfig(source='python:a.b:c?x="\\"', weights='C:\\ü \x7f\t"q".safetensors')
    ),
    "everything set": Recipe(
        prune=PruneConfig(criterion="taylor", method=Global(floor=0.3, round_to=8), ignore=("head.*", "[a]"), seed=7),
        read=ReadConfig(mean=(0.5, 0.25), std=(1.0, 2e-7), image_size=(8, 9), label="y"),
        finetune=TrainConfig(grad_clip=1.0, patience=3, num_threads=2, optimizer="sgd", lr=1e-9),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip(name):
    recipe = RECIPES[name]
    again = read_recipe_text(write_recipe(recipe))
    assert write_recipe(again) == write_recipe(recipe)
    assert dataclasses.replace(again, prune=recipe.prune) == recipe


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_can_be_written(criterion):
    recipe = Recipe(prune=PruneConfig(criterion=criterion))
    assert read_recipe_text(write_recipe(recipe)).prune.criterion == CRITERIA[criterion]()


def test_the_default_shows_every_field_of_every_section():
    text = default_recipe()
    data = tomllib.loads(text)
    assert {*data, "compensate"} == {f.name for f in dataclasses.fields(Recipe)} - {"steps"} == INTRO.keys()
    _, _, rest = text.partition("# [compensate]\n")  # a step that is not taken is shown as comments
    shown = tomllib.loads(re.sub("^# ", "", rest.partition("\n\n")[0], flags=re.M))
    assert shown.keys() == {f.name for f in dataclasses.fields(CompensateConfig)}
    for name, table in data.items():
        for f in dataclasses.fields(getattr(Recipe(), name)):
            assert f.name in table or f"# {f.name} is unset" in text


def test_what_is_left_out_takes_the_steps_own_defaults_and_steps_are_not_done():
    recipe = read_recipe_text(MINIMAL)
    assert (recipe.train, recipe.finetune) == (None, None)
    assert recipe.prune == PruneConfig()
    assert read_recipe_text(MINIMAL + "[finetune]\n").finetune == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]\n", "unknown key 'modle'. Did you mean 'model'?"),
        ("[model]\n[data]\n", r"lacks the section \[budget\]"),
        (
            "[model]\nsorce = 'a'\n[data]\n[budget]\nmacs=0.5",
            r"\[model\] has an unknown key 'sorce'. Did you mean 'source'",
        ),
        ("[model]\n[data]\n[budget]\n", r"\[budget\] An empty budget"),
        ("[model]\n[data]\n[budget]\nmacs = '0.5'", r"budget\.macs is '0\.5', but must be a number"),
        ("model = 3\n[data]\n[budget]\nmacs=0.5", "must be a section"),
        (MINIMAL + "[prune]\ncriterion = 'l3'", "No criterion 'l3'. Known"),
        (MINIMAL + "[prune]\ncriterion = {name = 'l2', power = 2}", "no field 'power'"),
        (MINIMAL + "[prune]\ncriterion = 3", "criterion is 3, but must be text"),
        (MINIMAL + "[prune]\nmethod = {name = 'uniform', flor = 1}", "unknown key 'flor'. Did you mean 'floor'"),
        (MINIMAL + "[prune]\nmethod = {floor = 1.0}", "name is None, but must be text"),
        (MINIMAL + "[prune]\nignore = 'head'", "ignore is 'head', but must be a list"),
        (MINIMAL + "[finetune]\nlr = -1", "Out of range: lr"),
        (MINIMAL + "[finetune]\nepochs = 2.5", "epochs is 2.5, but must be a whole number"),
        (MINIMAL + "[finetune]\nepochs = true", "epochs is True"),
        (MINIMAL + "[finetune]\naugment = {kind = 'warp'}", "No augmentation 'warp'"),
        ("[model]\nweights = 'w'\n[data]\n[budget]\nmacs = 0.5\n[train]\n", r"Delete the section \[train\]"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe_text(text)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileError, match="can't be read"):
        read_recipe(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_bytes(b"\xff")
    with pytest.raises(FileError, match="can't be read"):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(FileError, match="is not TOML"):
        read_recipe_text("[model")


@pytest.mark.parametrize(
    "steps",
    [
        (
            Prune(budget=Budget(params=0.5), compensate=CompensateConfig()),
            Sparsify(sparsity=0.3),
            Finetune(distill=Distill()),
        ),
        (Factorize(energy=0.9), Quantize(bits=4), Finetune(train=TrainConfig(epochs=2, augment=ShiftFlip(shift_px=2)))),
        (Drop(n=1), Activate(), Prune(prune=PruneConfig(criterion="kl")), Share(n_values=8)),
    ],
    ids=lambda steps: "-".join(step.name for step in steps),
)
def test_recipes_with_steps_come_back_from_their_text(steps: tuple[Step, ...]) -> None:
    recipe = Recipe(steps=steps)
    text = write_recipe(recipe)
    again = read_recipe_text(text)
    assert write_recipe(again) == text
    for step, found in zip(steps, again.steps, strict=True):
        assert found == step or found.prune.criterion == make_criterion(step.prune.criterion)  # a name is read as it
    assert "[budget]" not in text
    seeded = recipe.with_seed(7)
    assert write_recipe(read_recipe_text(write_recipe(seeded))) == write_recipe(seeded) != text


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ('[[steps]]\nstep = "melt"\n', "No step 'melt'. Known: activate, drop, factorize, finetune, mix, prune,"),
        ("[[steps]]\nbits = 4\n", 'must be a section [[steps]] with a name: step = "prune"'),
        ('[[steps]]\nstep = "quantize"\nbit = 4\n', "[steps.quantize] has an unknown key 'bit'. Did you mean 'bits'?"),
        (
            '[[steps]]\nstep = "quantize"\n[[steps]]\nstep = "sparsify"\n',
            "Step 2 (sparsify) can't follow step 1 (quantize)",
        ),
        ('[[steps]]\nstep = "quantize"\n[budget]\nmacs = 0.5\n', "[budget] and [[steps]] both say what to do"),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps: str, what: str) -> None:
    with pytest.raises(SecateurError, match=re.escape(what)):
        read_recipe_text(f"[model]\n[data]\n{steps}")
