"""The derivations' formulas that no code computes directly, against brute force in float64."""

import torch

from sbnref.conformance.oracle import forward

close = torch.testing.assert_close


def ranks(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Return each rank's elements of one channel, (n, 1, *), differentiable, with different means and spreads."""
    torch.manual_seed(0)
    xs = [torch.randn(n, 1, *s, dtype=torch.float64) for n, *s in sizes]
    return [(x * (r + 1) + 3 * r + 2).requires_grad_() for r, x in enumerate(xs)]


def statistics(xs: list[torch.Tensor], stats_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.ones(1, dtype=torch.float64)
    _, mean, var = forward(xs, one, one, stats_mode, 1e-5)
    return mean, var


def weights(xs: list[torch.Tensor], stats_mode: str) -> tuple[list[int], int]:
    """Return each rank's weight and the divisor."""
    weigh = {"default": lambda x: min(x.numel(), 1), "N": len, "exact": torch.Tensor.numel}[stats_mode]
    w = [weigh(x) for x in xs]
    return w, len(xs) if stats_mode == "default" else sum(w)


def test_two_sets_combine_by_chans_formula():
    a, b = (x.flatten() for x in ranks((5,), (9,)))
    both, m = torch.cat([a, b]), 14
    v_a, v_b, v = (x.var(correction=0) for x in (a, b, both))
    close(m * v, 5 * v_a + 9 * v_b + 5 * 9 / m * (a.mean() - b.mean()) ** 2)
    close(m * v, 5 * (v_a + (a.mean() - both.mean()) ** 2) + 9 * (v_b + (b.mean() - both.mean()) ** 2))


def test_the_variance_of_all_is_within_plus_between():
    xs = ranks((5, 2), (1, 3), (4, 4))
    everything = torch.cat([x.flatten() for x in xs])
    mean, var = statistics(xs, "exact")
    close(mean[0], everything.mean())
    close(var[0], everything.var(correction=0))


def test_the_skew_of_default():
    for empty in (1, 2, 3):
        full = ranks(*[(6, 2)] * (4 - empty))
        mean, var = statistics(full, "default")  # of the ranks with data
        skewed_mean, skewed_var = statistics([*full, *ranks(*[(0, 2)] * empty)], "default")
        q = empty / 4
        close(skewed_mean, (1 - q) * mean)
        close(skewed_var, (1 - q) * (var + q**2 * mean**2))
        grows = mean**2 > var * 4**2 / (empty * (4 - empty))
        assert torch.equal(skewed_var > var, grows)


def test_n_is_off_where_spatial_sizes_differ():
    xs = ranks((3, 4), (3, 12))
    n, exact = statistics(xs, "N")[0], statistics(xs, "exact")[0]
    close(n - exact, (1 / 2 - 4 / (4 + 12)) * (xs[0].mean() - xs[1].mean()).view(1))


def test_the_pieces_of_the_backward_pass():
    """Test the derivatives of mean and variance by an element, in every mode, with and without an empty rank."""
    for sizes in ([(2, 3), (5, 1), (4, 2)], [(2, 3), (0, 1), (4, 2)]):
        for stats_mode in ("default", "N", "exact"):
            xs = ranks(*sizes)
            mean, var = statistics(xs, stats_mode)
            w, d = weights(xs, stats_mode)
            options = dict(retain_graph=True, materialize_grads=True)
            dmeans, dvars = (torch.autograd.grad(value, xs, **options) for value in (mean, var))
            for x, weight, dmean, dvar in zip(xs, w, dmeans, dvars, strict=True):
                k = weight / (d * max(x.numel(), 1))
                close(dmean, torch.full_like(x, k))
                close(dvar, 2 * k * (x - mean) - 2 * k * mean * (1 - sum(w) / d))


def test_the_derivatives_by_mean_and_variance():
    x, g = torch.randn(2, 7, dtype=torch.float64)
    mean, var, gamma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 1.7, 0.9))
    sigma = (var + 1e-5).sqrt()
    loss = (g * gamma * (x - mean) / sigma).sum()
    by_mean, by_var = torch.autograd.grad(loss, (mean, var))
    b = (g * (x - mean) / sigma).sum()
    close(by_mean, -gamma / sigma * g.sum())
    close(by_var, -gamma / (2 * sigma**2) * b)


def test_forward_mode():
    """Test the output's tangent from two sums over the ranks, in every mode, with and without an empty rank."""
    for sizes in ([(2, 3), (5, 1), (4, 2)], [(2, 3), (0, 1), (4, 2)]):
        for stats_mode in ("default", "N", "exact"):
            xs = [x.detach() for x in ranks(*sizes)]
            moves = [x.sin() for x in xs]
            gamma, beta, dgamma, dbeta = torch.tensor([[1.5], [0.5], [0.3], [0.7]], dtype=torch.float64)

            def outputs(*moved, stats_mode=stats_mode):
                *inputs, gamma, beta = moved
                return tuple(forward(inputs, gamma, beta, stats_mode, 1e-5)[0])

            got = torch.func.jvp(outputs, (*xs, gamma, beta), (*moves, dgamma, dbeta))[1]
            mean, var = statistics(xs, stats_mode)
            sigma = (var + 1e-5).sqrt()
            w, d = weights(xs, stats_mode)
            hats = [(x - mean) / sigma for x in xs]
            k = [weight / max(x.numel(), 1) for weight, x in zip(w, xs, strict=True)]
            a = sum(k_r * move.sum() for k_r, move in zip(k, moves, strict=True))
            b = sum(k_r * (hat * move).sum() for k_r, hat, move in zip(k, hats, moves, strict=True))
            s = mean / sigma * (1 - sum(w) / d)
            for hat, move, along in zip(hats, moves, got, strict=True):
                close(along, gamma / sigma * (move - (a + hat * (b - s * a)) / d) + dgamma * hat + dbeta)


def test_averages_of_masked_averages():
    xs = ranks((4, 5), (2, 5), (3, 5))
    masks = [torch.arange(5) < torch.tensor(lengths)[:, None] for lengths in ([5, 1, 0, 3], [2, 1], [4, 4, 5])]
    valid = [x[:, 0][mask] for x, mask in zip(xs, masks, strict=True)]
    mean = torch.cat(valid).mean()
    weights = [1 / 3 - len(v) / sum(map(len, valid)) for v in valid]
    off = sum(w * v.mean() for w, v in zip(weights, valid, strict=True))
    close(torch.stack([v.mean() for v in valid]).mean() - mean, off)
    assert off.abs() > 0.1
    close(statistics([v.view(-1, 1) for v in valid], "default")[0][0], mean + off)
    close(statistics([v.view(-1, 1) for v in valid], "exact")[0][0], mean)
