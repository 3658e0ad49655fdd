"""Names under tests: pytest imports test modules and folders by their bare names, so that some may not be shared."""

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
TRAINING = TESTS.parent / "convert/demo/training"  # whose modules some tests import by their bare names


def test_no_two_test_modules_share_a_name() -> None:
    names = Counter(path.stem for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_folder_hides_a_module_of_the_demo_models_training() -> None:
    folders = {path.parent.name for path in TESTS.rglob("*.py")}
    assert folders & {path.stem for path in TRAINING.glob("*.py")} == set()
