"""A home is private, git leaves it alone, and doctor finds what others may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from medloop.operations.doctor import run_checks
from medloop.settings import Settings, hash_key, open_to_others, prepare_home


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    return Settings(home, str(home / "store"), f"sqlite:///{home / 'tracking.db'}", "")


def permissions(settings: Settings) -> tuple[str, str]:
    """What doctor finds of them: its state and its remedy."""
    (found,) = [check for check in run_checks(settings) if check.part == "permissions"]
    return found.state, found.remedy


def test_a_new_home_is_private_and_ignored_by_git(settings: Settings) -> None:
    hash_key(settings, "")
    assert settings.home.stat().st_mode & 0o777 == 0o700
    assert (settings.home / ".gitignore").read_text() == "*\n"


def test_a_checkout_that_is_used_as_home_keeps_its_own_rules(settings: Settings) -> None:
    (settings.home / ".git").mkdir(parents=True)
    prepare_home(settings)
    assert not (settings.home / ".gitignore").exists()


def test_what_an_earlier_version_left_open_is_found_and_closed(settings: Settings) -> None:
    (settings.home / "runs").mkdir(parents=True)
    (settings.home / "tracking.db").write_text("")
    (settings.home / "scans").mkdir()
    for path in settings.home.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
    left_open = [settings.home / "runs", settings.home / "tracking.db"]
    assert open_to_others(settings) == left_open
    state, remedy = permissions(settings)
    assert (state, remedy) == ("problem", f"Run: chmod -R go= {left_open[0]} {left_open[1]}")
    prepare_home(settings)
    assert open_to_others(settings) == []
    assert permissions(settings)[0] == "ok"
    assert (settings.home / "scans").stat().st_mode & 0o777 == 0o755  # whoever made it decides
