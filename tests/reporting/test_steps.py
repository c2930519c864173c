"""Curves over steps: what is drawn, whatever the names."""

import pytest

from polar_rm.reporting.plots import Curve, figure_svg
from polar_rm.reporting.steps import StepPanel, steps_figure


@pytest.mark.plots
def test_panels_have_their_curves_limits_and_marks():
    panels = [
        StepPanel("a$b_", {"one": Curve([1, 2], [3, 4], [2, 3], [4, 5]), "two": Curve([2], [5])}, [2.5], [(2, 4)]),
        *[StepPanel(f"panel {number}", {"two": Curve([1, 2], [0, 0])}, points=True) for number in range(3)],
    ]
    figure = steps_figure(panels)
    first, second = figure.axes[:2]
    assert len(figure.axes) == 6 and not figure.axes[5].axison
    assert [line.get_label() for line in first.lines][:2] == ["one", "two"] and list(first.lines[0].get_ydata()) == [3, 4]
    assert list(first.lines[2].get_ydata()) == [2.5, 2.5] and list(first.lines[3].get_xdata()) == [2]
    assert first.lines[1].get_color() == second.lines[0].get_color() != first.lines[0].get_color()
    assert "a$b_" in figure_svg(figure)
