"""The command ``ray-l4``, also ``python -m ray_l4.cli``: handles signals before it imports anything slow."""

from __future__ import annotations

from ray_l4.cli import interruption


def main() -> None:
    """Run the command line and exit."""
    with interruption.heeded():
        from ray_l4.cli.main import main as run_command_line

        run_command_line()


if __name__ == "__main__":
    main()
