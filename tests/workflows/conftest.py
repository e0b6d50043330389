from tests.e2e.loop import place

__all__ = ["place"]
