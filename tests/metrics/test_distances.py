"""Distances against closed forms, loops and the matrix square root; their errors against the spread of repetitions."""

from itertools import combinations

import numpy as np
import pytest
import scipy.linalg

from metrics import distances


def rng(seed=0):
    return np.random.default_rng(seed)


def covariance(dims, rank, seed):
    root = rng(seed).standard_normal((dims, rank))
    return root @ root.T / rank


def moments(rows):
    result = distances.Moments(rows.shape[1])
    result.update(rows)
    return result


def frechet(x, y):
    return distances.frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


# ---------------------------------------------------------------------------------------------------------------------
# Moments


@pytest.mark.parametrize("batch", [1, 7, 300, 1000])
def test_moments_do_not_depend_on_the_batch_size(batch):
    rows = 1e5 + rng().standard_normal((1000, 5)) @ rng(1).standard_normal((5, 5))
    streamed = distances.Moments(5)
    for start in range(0, 1000, batch):
        streamed.update(rows[start : start + batch])
    assert streamed.count == 1000
    np.testing.assert_allclose(streamed.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows, rowvar=False), rtol=1e-9)


def test_merging_equals_one_pass_and_taking_out_undoes_it():
    rows = 3 + rng().standard_normal((90, 4))
    whole, part = moments(rows[:60]), moments(rows[60:])
    whole.merge(distances.Moments(4))
    whole.merge(part)
    np.testing.assert_allclose(whole.covariance, np.cov(rows, rowvar=False), rtol=1e-12)
    rest = whole.without(part)
    assert rest.count == 60
    np.testing.assert_allclose(rest.mean, rows[:60].mean(0), rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, np.cov(rows[:60], rowvar=False), rtol=1e-11)


def test_memory_of_moments_does_not_grow_with_the_rows():
    streamed = distances.Moments(3)
    for _ in range(50):
        streamed.update(rng().standard_normal((100, 3)))
        assert sum(map(len, streamed._pending)) < streamed.GATHER


# ---------------------------------------------------------------------------------------------------------------------
# Frechet distance


@pytest.mark.parametrize("rank", [6, 3])
def test_equal_covariances_give_the_squared_distance_of_the_means(rank):
    cov = covariance(6, rank, seed=0)
    shift = np.arange(6.0)
    assert distances.frechet_distance(shift, cov, np.zeros(6), cov) == pytest.approx(55, abs=1e-9)


def test_commuting_covariances_have_a_closed_form():
    """Also singular ones: then it is exact where the square root of a product loses half of the digits."""
    basis = np.linalg.qr(rng().standard_normal((40, 40)))[0]
    a, b = rng(1).uniform(0.1, 5, 40), rng(2).uniform(0.1, 5, 40)
    for zeros_a, zeros_b in [([], []), ([0, 1], []), (range(10), range(5, 15)), (range(20), range(20, 40))]:
        a0, b0 = a.copy(), b.copy()
        a0[list(zeros_a)], b0[list(zeros_b)] = 0, 0
        expected = ((np.sqrt(a0) - np.sqrt(b0)) ** 2).sum()
        found = distances.frechet_distance(np.zeros(40), basis * a0 @ basis.T, np.zeros(40), basis * b0 @ basis.T)
        assert found == pytest.approx(expected, rel=1e-12)


def test_fewer_samples_than_dimensions():
    x = rng().standard_normal((20, 100))
    assert frechet(x, x) == pytest.approx(0, abs=1e-10)
    # The rank is 19 at most, so the nuclear norm of the centred rows' product is the trace of the root.
    y = rng(1).standard_normal((30, 100)) + 1
    centred = (x - x.mean(0)) / 19**0.5, (y - y.mean(0)) / 29**0.5
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * root
    assert frechet(x, y) == pytest.approx(expected, rel=1e-12)


def test_constant_features_are_points():
    zero = np.zeros((3, 3))
    assert distances.frechet_distance(np.zeros(3), zero, np.ones(3), np.eye(3)) == pytest.approx(6)
    assert distances.frechet_distance(np.zeros(3), zero, np.ones(3), zero) == pytest.approx(3)


def test_frechet_agrees_with_the_matrix_square_root():
    a, b = covariance(64, 200, seed=1), covariance(64, 90, seed=2)
    root = np.trace(scipy.linalg.sqrtm(a @ b)).real
    found = distances.frechet_distance(np.zeros(64), a, np.zeros(64), b)
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * root, rel=1e-10)
    assert found == pytest.approx(distances.frechet_distance(np.zeros(64), b, np.zeros(64), a), rel=1e-10)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        distances.frechet_distance(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))


# ---------------------------------------------------------------------------------------------------------------------
# Errors, and the finite number of rows


def test_jackknife_of_a_mean_is_its_textbook_error():
    rows = rng().standard_normal((40, 1))
    found = distances.jackknife([moments(row[None]) for row in rows], lambda part: part.mean[0])
    assert found.se == pytest.approx(rows.std(ddof=1) / 40**0.5, rel=1e-9)
    assert found.bias == pytest.approx(0, abs=1e-12)


def test_jackknife_finds_the_bias_of_a_squared_mean():
    """E mean^2 = truth^2 + variance / N, and the estimate of the last term is the sample's variance over N."""
    rows = 2 + rng().standard_normal((40, 1))
    found = distances.jackknife([moments(row[None]) for row in rows], lambda part: part.mean[0] ** 2)
    assert found.bias == pytest.approx(rows.var(ddof=1) / 40, rel=1e-9)


TRUTH = np.array([0.5, 0, 0]), np.diag([1.0, 2, 3])


def to_truth(part):
    return distances.frechet_distance(part.mean, part.covariance, *TRUTH)


@pytest.mark.slow
def test_error_bias_and_limit_of_the_distance_are_those_of_repetitions():
    found, limits = [], []
    for seed in range(60):
        rows = rng(seed).standard_normal((400, 3))
        blocks = [moments(rows[k::10]) for k in range(10)]
        found.append(distances.jackknife(blocks, to_truth))
        limits.append(distances.extrapolated(blocks, to_truth))
    exact = 0.25 + ((1 - 2**0.5) ** 2) + (1 - 3**0.5) ** 2
    values, extrapolated = np.array([one.value for one in found]), np.array([one.value for one in limits])
    assert np.mean([one.se for one in found]) == pytest.approx(values.std(), rel=0.25)
    assert np.mean([one.se for one in limits]) == pytest.approx(extrapolated.std(), rel=0.25)
    error = values.std() / 60**0.5  # of the mean of 60
    assert np.mean([one.bias for one in found]) == pytest.approx(values.mean() - exact, abs=3 * error)
    assert extrapolated.mean() == pytest.approx(exact, abs=3 * error)


def test_the_limit_takes_away_most_of_the_bias_in_many_dimensions():
    """Equal laws: the distance is 0, and only the finite number of rows makes it more."""
    rows = rng().standard_normal((400, 40))
    blocks = [moments(rows[k::10]) for k in range(10)]

    def to_unit(part):
        return distances.frechet_distance(part.mean, part.covariance, np.zeros(40), np.eye(40))

    found, limit = distances.jackknife(blocks, to_unit), distances.extrapolated(blocks, to_unit)
    assert found.value > 10 * found.se and found.bias == pytest.approx(found.value, rel=0.3)
    assert abs(limit.value) < 0.2 * found.value


# ---------------------------------------------------------------------------------------------------------------------
# Kernel distance


def test_kernel_distance_agrees_with_a_double_loop():
    x, y = rng().standard_normal((8, 3)), rng(1).standard_normal((7, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within = sum(np.mean([kernel(s[i], s[j]) for i, j in combinations(range(len(s)), 2)]) for s in (x, y))
    between = np.mean([kernel(a, b) for a in x for b in y])
    found = distances.kernel_distance(x, y)
    assert found.value == pytest.approx(within - 2 * between, rel=1e-12) and found.se is None
    with pytest.raises(ValueError, match="two rows"):
        distances.kernel_distance(x[:1], y)


def test_kernel_distance_in_chunks_and_its_error_by_hand(monkeypatch):
    x, y = rng().standard_normal((45, 3)), rng(1).standard_normal((37, 3))
    whole = distances.kernel_distance(x, y, blocks=4)
    left_out = [distances.kernel_distance(x, np.delete(y, np.s_[k::4], axis=0), blocks=1).value for k in range(4)]
    assert whole.se == pytest.approx((3 * np.var(left_out)) ** 0.5, rel=1e-9)
    monkeypatch.setattr(distances, "ROWS", 7)
    chunked = distances.kernel_distance(x, y, blocks=4)
    assert (chunked.value, chunked.se) == pytest.approx((whole.value, whole.se), rel=1e-9)


@pytest.mark.slow
def test_kernel_distance_is_unbiased_and_its_error_is_its_spread():
    reference = rng(1000).standard_normal((200, 4))
    found = [distances.kernel_distance(reference, rng(seed).standard_normal((60, 4)) * 1.5) for seed in range(150)]
    values = [one.value for one in found]
    assert np.mean([one.se for one in found]) == pytest.approx(np.std(values), rel=0.25)
    values = [distances.kernel_distance(*rng(seed).standard_normal((2, 20, 4)), blocks=1).value for seed in range(1000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 1000**0.5
    assert np.mean(np.array(values) < 0) > 0.4


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours


def by_hand(real, fake):
    """The four scores from whole matrices, as the papers' equations read."""
    def pairs(a, b):
        return np.linalg.norm(a[:, None] - b, axis=2)

    def radius(rows, k):
        return np.sort(pairs(rows, rows), axis=1)[:, k]  # the row itself is the first

    between = pairs(real, fake)
    balls = between <= radius(real, 5)[:, None]
    return {"precision": (between <= radius(real, 3)[:, None]).any(0).mean(),
            "recall": (between <= radius(fake, 3)).any(1).mean(),
            "density": balls.sum(0).mean() / 5, "coverage": balls.any(1).mean()}


def test_neighbour_scores_agree_with_whole_matrices_and_leaving_out_by_hand(monkeypatch):
    monkeypatch.setattr(distances, "ROWS", 13)
    real, fake = 5 + rng().standard_normal((50, 3)), 5.5 + rng(1).standard_normal((43, 3)) * 0.7
    found, expected = distances.neighbour_scores(real, fake, blocks=4), by_hand(real, fake)
    left_out = [by_hand(real, np.delete(fake, np.s_[k::4], axis=0)) for k in range(4)]
    for name, value in expected.items():
        assert 0 < value < 1 or name == "density"
        assert found[name].value == pytest.approx(value, rel=1e-12)
        assert found[name].se == pytest.approx((3 * np.var([one[name] for one in left_out])) ** 0.5, rel=1e-9)


def test_neighbour_scores_where_they_are_known():
    real = rng().standard_normal((100, 2))
    same = distances.neighbour_scores(real, real)
    assert [same[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert same["density"].value >= 1  # each ball holds its own centre and five more
    far = distances.neighbour_scores(real, real + 1000)
    assert [score.value for score in far.values()] == [0, 0, 0, 0]
    one = distances.neighbour_scores(real, np.repeat(real[:1], 40, axis=0))  # one image again and again
    assert one["precision"].value == 1 and one["recall"].value == 0.01 and one["coverage"].value < 0.2
    with pytest.raises(ValueError, match="12 rows"):
        distances.neighbour_scores(real[:11], real)


def test_errors_of_neighbour_scores_are_their_spread():
    """Of recall and coverage, which are of whether anything is near, the jackknife's error is on the safe side."""
    real = rng(1000).standard_normal((100, 8))
    found = [distances.neighbour_scores(real, 0.5 + rng(seed).standard_normal((80, 8))) for seed in range(80)]
    for name, most in (("precision", 1.25), ("recall", 1.8), ("density", 1.25), ("coverage", 1.8)):
        spread = np.std([one[name].value for one in found])
        assert 0.75 < np.mean([one[name].se for one in found]) / spread < most


def test_nearest_rows_are_found_in_any_batches():
    queries, rows = rng().standard_normal((5, 3)), rng(1).standard_normal((50, 3))
    nearest = distances.Nearest(queries)
    for numbers in np.array_split(rng(2).permutation(50), 7):
        nearest.update(numbers, rows[numbers].astype(np.float32))
    expected = np.linalg.norm(queries[:, None] - rows, axis=2)
    np.testing.assert_array_equal(nearest.number, expected.argmin(1))
    np.testing.assert_allclose(nearest.distance, expected.min(1), rtol=1e-5)
