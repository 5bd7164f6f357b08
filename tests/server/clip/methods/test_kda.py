"""KDA against the released loss, and what the definition implies for compression."""

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.methods import kda
from covervlm.server.clip.methods.contracts import Examples

cases = pytest.mark.parametrize("case", range(2))


@cases
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_the_loss_and_its_gradient_are_those_of_the_reference(golden, case, dtype, rtol):
    g = golden("kda", case, dtype)
    student = g.student.clone().requires_grad_(True)
    value = kda.loss(student, g.teacher, g.student_centers, g.teacher_centers)
    value.backward()
    assert value.dtype == dtype
    assert value.item() == pytest.approx(g.loss, rel=rtol)
    torch.testing.assert_close(student.grad, g.grad_student, rtol=rtol, atol=rtol)
    wanted = g.teacher @ g.teacher_centers.T
    closed = (g.student @ g.student_centers.T - wanted).clamp(-1, 1) @ g.student_centers / wanted.norm()
    torch.testing.assert_close(student.grad, closed, rtol=rtol, atol=rtol)


@cases
def test_similarities_by_landmarks_are_those_of_the_reference(golden, case):
    g = golden("kda", case)
    ours = kda.nystrom(g.teacher, g.teacher_centers)
    torch.testing.assert_close(ours, g.nystrom_teacher, rtol=1e-8, atol=1e-8)
    whole = g.teacher @ g.teacher.T
    assert float((ours - whole).norm() / whole.norm()) == pytest.approx(g.relative_nystrom_error, abs=1e-10)


def test_a_rotated_teacher_is_a_perfect_student_and_landmarks_are_constants(golden):
    g = golden("kda", 0)
    turn = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    centers = g.teacher_centers.clone().requires_grad_(True)
    assert float(kda.loss(g.teacher @ turn, g.teacher, g.teacher_centers @ turn, centers)) == pytest.approx(
        0, abs=1e-20
    )
    student = g.student.clone().requires_grad_(True)
    kda.loss(student, g.teacher, g.student_centers, centers).backward()
    assert centers.grad is None


def test_compressed_cosines_are_nearer_to_the_true_ones_than_those_of_the_principal_directions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 24, generator=generator)[torch.arange(300) % 30] + 0.5 * torch.randn(
        300, 24, generator=generator
    )
    x = normalize(x * torch.linspace(2, 0.2, 24), dim=1)

    def error(points):
        return float((points @ points.T - x @ x.T).norm())

    start = kda.principal_directions(x, 6)
    learned = kda.KDA(dimensions=6).fit(Examples(x))
    assert learned.matrix.shape == (6, 24)
    assert error(learned.embed(x)) < 0.99 * error(normalize(x @ start.T, dim=1))
