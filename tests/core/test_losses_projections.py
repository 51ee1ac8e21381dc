"""Projections: widths, their start, and that a loss trains them."""

import pytest
import torch

from entrenar_core.losses import hidden_mse, make_projection


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("width_in", "width_out"), [(6, 10), (10, 6), (8, 8), (1, 5)])
def test_it_leads_from_one_width_to_the_other_and_starts_as_its_seed_says(
    kind: str, width_in: int, width_out: int
) -> None:
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(make_projection(kind, width_in, width_out))  # type: ignore[arg-type]
    hidden_BTH = torch.randn(2, 3, width_in)
    assert made[0](hidden_BTH).shape == (2, 3, width_out)
    assert torch.equal(made[0](hidden_BTH), made[1](hidden_BTH))
    assert not torch.equal(made[0](hidden_BTH), made[2](hidden_BTH))


@pytest.mark.parametrize(("width_in", "width_out"), [(6, 10), (8, 8)])
def test_a_linear_one_begins_by_keeping_lengths_and_angles(width_in: int, width_out: int) -> None:
    projection, hidden_NH = make_projection("linear", width_in, width_out), torch.randn(7, width_in)
    projected_NK = projection(hidden_NH)
    torch.testing.assert_close(projected_NK @ projected_NK.T, hidden_NH @ hidden_NH.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(projection(torch.zeros(1, width_in)), torch.zeros(1, width_out))


def test_an_mlp_is_two_linear_maps_around_a_gelu() -> None:
    projection = make_projection("mlp", 4, 6)
    assert isinstance(projection, torch.nn.Sequential)
    first, gelu, second = projection
    assert (first.weight.shape, second.weight.shape) == ((6, 4), (6, 6))
    hidden_NH = torch.randn(5, 4)
    inside = first(hidden_NH)
    by_hand = inside * (1 + torch.erf(inside / 2**0.5)) / 2
    torch.testing.assert_close(gelu(inside), by_hand)
    assert torch.linalg.matrix_rank(second.weight) == 6


def test_none_is_the_identity_and_has_nothing_to_train() -> None:
    projection, hidden_NH = make_projection("none", 4, 4), torch.randn(5, 4)
    assert torch.equal(projection(hidden_NH), hidden_NH)
    assert list(projection.parameters()) == []


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_it_trains_with_what_is_before_it(kind: str) -> None:
    torch.manual_seed(0)
    projection, student_BTH = make_projection(kind, 4, 6), torch.randn(3, 5, 4, requires_grad=True)  # type: ignore[arg-type]
    teacher_BTH, mask_BT = torch.randn(3, 5, 6), torch.ones(3, 5)
    trained = [student_BTH, *projection.parameters()]
    before = hidden_mse(projection(student_BTH), teacher_BTH, mask_BT).total.item()
    for _ in range(100):
        loss = hidden_mse(projection(student_BTH), teacher_BTH, mask_BT).total
        gradients = torch.autograd.grad(loss, trained)
        assert all(gradient.any() for gradient in gradients)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= 0.05 * gradient
    assert loss.item() < 0.3 * before


@pytest.mark.parametrize(
    ("kind", "widths", "message"),
    [
        ("none", (4, 6), "widths 4 and 6 need a projection: linear or mlp"),
        ("conv", (4, 4), "none, linear or mlp, got 'conv'"),
        ("linear", (0, 4), "positive, got 0 and 4"),
        ("none", (-1, -1), "positive, got -1 and -1"),
    ],
)
def test_what_is_no_projection_is_refused(kind: str, widths: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_projection(kind, *widths)  # type: ignore[arg-type]
