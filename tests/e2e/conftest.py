from tests.e2e.loop import few_scans, place

__all__ = ["few_scans", "place"]
