from tests.components.shared.templates import _templates, shared_template

__all__ = ["_templates", "shared_template"]
