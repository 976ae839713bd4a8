"""KLDA: its laws as an estimator, its density and objectives against plain versions, its pruning and its folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

import secateur
from secateur.errors import ConfigError, DataError, FileError
from secateur.models import KLDA, KLDANet, fruit_baskets
from secateur.models.klda.features import TextFeatures
from secateur.models.klda.network import MixtureHead
from secateur.models.klda.pruning import component_scores
from secateur.models.klda.training import Rows, Variational, multinomial_loss, sharpened

TEXTS, KINDS = fruit_baskets()
QUICK = {"hidden": (16,), "latent_dim": 2, "covariance": "diag", "n_init": 1, "batch_size": 64}


@pytest.fixture(scope="module")
def fitted():
    model = KLDA(3, latent_dim=3, covariance="diag", pretrain_epochs=40, batch_size=16, random_state=0)
    return model.fit(TEXTS)


@pytest.mark.filterwarnings("ignore:SCIPY_ARRAY_API is not set")
@parametrize_with_checks([KLDA(3, features="precomputed", pretrain_epochs=2, epochs=1, lr=1e-2, **QUICK)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_fruit_baskets_are_found(fitted):
    assert normalized_mutual_info_score(KINDS, fitted.labels_) > 0.8
    assert np.array_equal(fitted.predict(TEXTS), fitted.labels_)
    proba = fitted.predict_proba(TEXTS)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert np.array_equal(proba.argmax(1), fitted.labels_)
    assert fitted.score(TEXTS) == pytest.approx(fitted.score_samples(TEXTS).mean())


@pytest.mark.parametrize("objective", ["dec", "elbo", None])
def test_every_objective_clusters_and_repeats_itself(objective):
    settings = dict(QUICK, objective=objective, pretrain_epochs=5, epochs=2, batch_size=16, random_state=3)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (KLDA(3, **settings).fit(TEXTS) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert np.array_equal(one.predict_proba(TEXTS), two.predict_proba(TEXTS))
    assert one.n_clusters_ == 3
    assert clone(one).get_params() == one.get_params()


def test_the_number_of_clusters_is_that_of_least_bic():
    x = np.random.default_rng(0).normal(size=(90, 3)) + 12 * np.repeat(np.eye(3), 30, axis=0)
    model = KLDA((1, 3), features="precomputed", random_state=0, pretrain_epochs=30, objective=None, **QUICK)
    model.fit(x)
    assert model.n_clusters_ == min(model.bic_, key=model.bic_.get) == 3
    assert normalized_mutual_info_score(np.repeat([0, 1, 2], 30), model.labels_) == 1


def test_with_labels_it_is_a_classifier():
    model = KLDA(9, random_state=0, pretrain_epochs=10, epochs=20, lr=1e-2, **QUICK).fit(TEXTS, KINDS)
    assert model.classes_.tolist() == ["breakfast", "dessert", "jam"]
    assert model.score(TEXTS, KINDS) > 0.9
    assert set(model.predict(TEXTS[:3])) <= set(KINDS)
    with pytest.raises(DataError, match="one label per sample"):
        model.fit(TEXTS, KINDS[:5])


@pytest.mark.parametrize("covariance", ["full", "diag", "tied"])
def test_head_is_the_density_of_scikit_learns_mixture(covariance):
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(3, covariance_type=covariance, random_state=0).fit(rng.normal(size=(80, 4)))
    head = MixtureHead(3, 4, covariance)
    head.set_mixture_(mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
    z = rng.normal(size=(7, 4))
    logits = head(torch.from_numpy(z).float()).detach()
    np.testing.assert_allclose(logits.logsumexp(1), mixture.score_samples(z), rtol=1e-4)
    np.testing.assert_allclose(logits.softmax(1), mixture.predict_proba(z), rtol=1e-3, atol=1e-6)
    mean, variance = torch.randn(2, 4), torch.rand(2, 4)
    drawn = mean + variance.sqrt() * torch.randn(40_000, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        head.expected(mean, variance), head(drawn.flatten(0, 1)).view(-1, 2, 3).mean(0), rtol=0.05, atol=0.1
    )


def test_evidence_bound_is_a_bound():
    """-(loss + KL) averaged over draws is below log p(x), the log of an integral, here a sum over a grid."""
    torch.manual_seed(0)
    net, x = KLDANet(4, 2, hidden=(3,), latent_dim=1, covariance="diag"), torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    for p in net.parameters():
        torch.nn.init.normal_(p)
    decoder = torch.nn.Linear(1, 4)
    model = Variational(net, decoder, denoising=0.0).train()
    with torch.no_grad():
        draws = [(multinomial_loss(out, x) + kl).item() for out, kl in (model(x) for _ in range(2000))]
        grid = torch.linspace(-40, 40, 80_001).unsqueeze(1)
        words = (x * decoder(grid).log_softmax(1)).sum(1)
        log_p = (words + net.head(grid).logsumexp(1)).logsumexp(0) + np.log(0.001)
    assert -np.mean(draws) <= log_p.item() + 0.05


def test_sharpening_raises_what_is_sure_and_keeps_sums():
    q = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = torch.empty(6, 3)
    for i in range(6):
        row = [float(q[i, k]) ** 2 / float(q[:, k].sum()) for k in range(3)]
        expected[i] = torch.tensor(row) / sum(row)
    torch.testing.assert_close(sharpened(q), expected)


def test_components_score_by_the_divergence_without_them():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)
    for k in range(4):
        rest = p.clone()
        rest[:, k] = 0
        rest /= rest.sum(1, keepdim=True)
        kl = torch.where(rest > 0, rest * (rest / p).log(), 0.0).sum(1).mean()
        torch.testing.assert_close(component_scores(logits)[k], kl)


@pytest.mark.parametrize("features", ["multi_hot", "tfidf"])
def test_features_shrink_with_the_encoder(features):
    model = KLDA(3, features=features, pretrain_epochs=20, epochs=2, random_state=0, **QUICK).fit(TEXTS)
    small = model.prune(TEXTS, features=0.5, hidden=0.5, n_clusters=2, epochs=0)
    assert small.features_.size == 4
    assert set(small.features_.vocabulary) < set(model.features_.vocabulary)
    assert small.network_.encoder[0].weight.shape == (8, 4)
    assert small.predict_proba(TEXTS).shape == (29, 2)
    assert model.network_.encoder[0].weight.shape == (16, 8)
    assert small.edits_.replay(model.network_).head.means.shape == (2, 2)


def test_numbers_are_pruned_by_column_and_take_the_same_samples():
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=60) + 9 * np.repeat([0, 1], 30), rng.normal(size=(60, 3)) * 1e-3]
    model = KLDA(2, features="precomputed", pretrain_epochs=20, random_state=0, **QUICK).fit(x)
    small = model.prune(x, features=0.5)
    assert len(small.features_.chosen) == 2
    assert small.predict(x).shape == (60,)


def test_pruning_by_kl_changes_assignments_less_than_at_random(fitted):
    def divergence(how, seed):
        small = fitted.prune(TEXTS, features=0.75, hidden=0.75, criterion=how, word_score=how, epochs=0, seed=seed)
        p, q = fitted.predict_proba(TEXTS), small.predict_proba(TEXTS)
        return float((p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(1).mean())

    assert divergence("kl", 0) < np.mean([divergence("random", seed) for seed in range(5)])


def test_fitting_afterwards_brings_assignments_back(fitted):
    cut, followed = (fitted.prune(TEXTS, features=0.75, hidden=0.5, epochs=n, lr=5e-3) for n in (0, 20))
    dense = fitted.predict_proba(TEXTS)
    errors = [np.abs(small.predict_proba(TEXTS) - dense).mean() for small in (cut, followed)]
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("labels", [None, KINDS], ids=["clusterer", "classifier"])
def test_what_is_saved_is_loaded(tmp_path, labels):
    model = KLDA(3, features="tfidf", stop_words="english", pretrain_epochs=2, epochs=1, random_state=0, **QUICK)
    small = model.fit(TEXTS, labels).prune(TEXTS, features=0.5, hidden=0.5, epochs=1).prune(TEXTS, hidden=0.5)
    again = KLDA.load(small.save(tmp_path / "model"))
    assert np.array_equal(again.predict_proba(TEXTS), small.predict_proba(TEXTS))
    assert np.array_equal(again.predict(TEXTS), small.predict(TEXTS))
    assert again.features_ == small.features_
    assert again.edits_ == small.edits_
    again.save(tmp_path / "model", overwrite=True)
    with pytest.raises(FileError, match="exists"):
        again.save(tmp_path / "model")
    x = torch.zeros(2, small.features_.size)
    torch.testing.assert_close(secateur.load(tmp_path / "model" / "network")(x), small.network_(x))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "other"}, "is not a KLDA"),
        ({"settings": {"depth": 3}}, "settings that KLDA does not take"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"features": {"kind": "multi_hot"}}, "can't be read"),
    ],
    ids=lambda v: "" if isinstance(v, str) else next(iter(v)),
)
def test_foreign_folders_are_refused(tmp_path, fitted, change, text):
    folder = fitted.save(tmp_path / "model")
    data = json.loads((folder / "klda.json").read_text())
    (folder / "klda.json").write_text(json.dumps(data | change))
    with pytest.raises(FileError, match=text):
        KLDA.load(folder)
    with pytest.raises(FileError, match=r"holds no klda\.json"):
        KLDA.load(tmp_path)
    (tmp_path / "file").mkdir()
    with pytest.raises(FileError, match="no saved KLDA"):
        fitted.save(tmp_path / "file", overwrite=True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"features": "words"}, "features='words' is none of"),
        ({"covariance": "round"}, "covariance='round' is none of"),
        ({"objective": "vae"}, "objective='vae' is none of"),
        ({"n_clusters": ()}, r"n_clusters=\(\) must be"),
        ({"denoising": 1.0}, r"denoising=1\.0 is outside"),
        ({"hidden": (0,)}, "must be positive"),
    ],
    ids=lambda v: "" if isinstance(v, str) else next(iter(v)),
)
def test_settings_are_checked(settings, text):
    with pytest.raises(ConfigError, match=text):
        KLDA(**{"n_clusters": 2, **settings}).fit(TEXTS)


def test_texts_that_are_none_are_named():
    with pytest.raises(DataError, match="one string"):
        KLDA(2).fit("apple fig")
    with pytest.raises(DataError, match="A text is a int"):
        KLDA(2).fit(["fig", 3])
    with pytest.raises(DataError, match="no vocabulary"):
        KLDA(2).fit(["", " "])


def test_chinese_is_read_by_characters():
    features = TextFeatures.fit(["苹果", "果酱"], analyzer="char")
    assert set(features.vocabulary) == {"苹", "果", "酱", "苹果", "果酱"}
    assert features.transform(["果"]).toarray().sum() == 1


@pytest.mark.parametrize("kind", ["multi_hot", "tfidf"])
def test_columns_are_those_of_scikit_learn(kind):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    plain = TfidfVectorizer(sublinear_tf=True) if kind == "tfidf" else CountVectorizer(binary=True)
    expected = plain.fit_transform(TEXTS).toarray()
    features = TextFeatures.fit(TEXTS, kind=kind)
    np.testing.assert_allclose(features.transform(TEXTS).toarray(), expected, rtol=1e-6)
    rows = Rows(features.transform(TEXTS))
    np.testing.assert_allclose(torch.cat(list(rows.batches(7))), expected, rtol=1e-6)
