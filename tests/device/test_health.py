import pytest

from services.device.drivers import ProbedDevice, Sample
from services.device.rules.assessment import LIMITS, NOTHING_RAISED, Alert, alerts, assess

GPU = ProbedDevice(id="n-gpu-0", name="GPU", vendor="V", type="gpu", architecture="a", memory=1000)
WARM, HOT, FULL = LIMITS


def sample(temperature: float | None = 50, used: int | None = 500, total: int = 1000, lost: bool = False) -> Sample:
    return Sample(0.0, None, temperature, None, used, total, lost)


@pytest.mark.parametrize(
    ("temperature", "used", "status", "issues"),
    [
        (None, 0, "healthy", []),
        (-5, 0, "healthy", []),
        (80, 950, "healthy", []),
        (80.1, 950, "warning", ["temperature 80.1 °C, above 80"]),
        (90, 950, "warning", ["temperature 90 °C, above 80"]),
        (90.1, 950, "critical", ["temperature 90.1 °C, above 90"]),
        (80, 951, "warning", ["memory 95.1 % in use, above 95"]),
        (None, 1000, "warning", ["memory 100 % in use, above 95"]),
        (80.1, 951, "warning", ["temperature 80.1 °C, above 80", "memory 95.1 % in use, above 95"]),
        (95, 951, "critical", ["temperature 95 °C, above 90", "memory 95.1 % in use, above 95"]),
        (95, None, "critical", ["temperature 95 °C, above 90"]),
        (50, None, "healthy", []),
        (None, None, "unknown", ["GPU reports neither its temperature nor its memory"]),
    ],
)
def test_health_is_a_matter_of_thresholds(
    temperature: float | None, used: int | None, status: str, issues: list[str]
) -> None:
    assert assess(GPU, sample(temperature, used)) == (status, issues)


def test_a_device_without_a_sample_is_unknown() -> None:
    assert assess(GPU, None) == ("unknown", ["n-gpu-0 has not been sampled yet"])


def test_a_lost_device_is_critical_whatever_else_it_reads() -> None:
    assert assess(GPU, sample(20, 0, lost=True)) == (
        "critical",
        ["GPU is lost: it no longer answers; reset it or restart the machine"],
    )


def test_a_device_without_memory_is_judged_by_its_temperature() -> None:
    assert assess(GPU, sample(85, 0, total=0))[0] == "warning"


@pytest.mark.parametrize(
    ("readings", "crossings"),
    [
        ([80], []),
        ([81], [Alert("temperature", 81, 80)]),
        ([79, 80, 80.5, 81, 79], [Alert("temperature", 80.5, 80)]),  # a slow climb is noticed
        ([81, 79, 81, 78.1, 81], [Alert("temperature", 81, 80)]),  # wavering is one crossing
        ([81, 78, 82], [Alert("temperature", 81, 80), Alert("temperature", 82, 80)]),  # well again, then not
        ([95], [Alert("temperature", 95, 80), Alert("temperature", 95, 90)]),
        ([85, 91, 89, 91], [Alert("temperature", 85, 80), Alert("temperature", 91, 90)]),
        ([81, None, 81], [Alert("temperature", 81, 80)]),  # a missing reading is not a better one
    ],
)
def test_an_alert_is_raised_once_per_crossing(readings: list[float | None], crossings: list[Alert]) -> None:
    raised, seen = NOTHING_RAISED, []
    for value in readings:
        new, raised = alerts(sample(value, used=None), raised)
        seen += new
    assert seen == crossings


def test_full_memory_is_an_alert_in_percent() -> None:
    assert alerts(sample(used=960), NOTHING_RAISED) == ([Alert("memory", 96.0, 95)], frozenset({FULL}))
    assert alerts(sample(used=941), frozenset({FULL})) == ([], frozenset({FULL}))
    assert alerts(sample(used=940), frozenset({FULL})) == ([], NOTHING_RAISED)


def test_a_lost_device_raises_and_clears_nothing() -> None:
    assert alerts(Sample(0, None, None, None, None, 0, lost=True), frozenset({WARM})) == ([], frozenset({WARM}))


def test_the_status_wavers_as_little_as_the_alerts() -> None:
    assert assess(GPU, sample(79))[0] == "healthy"
    assert assess(GPU, sample(79), frozenset({WARM})) == ("warning", ["temperature 79 °C, above 80"])
    assert assess(GPU, sample(89), frozenset({WARM, HOT}))[0] == "critical"
    assert assess(GPU, sample(78), frozenset({WARM, HOT}))[0] == "healthy"
