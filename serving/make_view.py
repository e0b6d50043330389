"""The work of a decoding process: from the bytes of an image to the model's view, as in evaluation."""

from __future__ import annotations

from typing import Any

import gdcm  # noqa: F401 - imported early, so that no file waits for the import
import openjpeg.utils  # noqa: F401
import pydicom.pixels  # noqa: F401

from components.shared.imaging import image_files
from components.shared.imaging.decode_sandbox import REFUSAL, VIEW, limit_resources, limits
from components.shared.imaging.views import view


def make_view(data: bytes, decoding: dict[str, Any], view_parameters: tuple[int, str, float, str]) -> bytes:
    """Return VIEW and the view's pixels, or REFUSAL and the reason why the file cannot be used."""
    with limit_resources(limits(data)):
        try:
            master = image_files.decode_image(data, image_files.Decoding(**decoding))
            return VIEW + view(master.pixels, *view_parameters).tobytes()
        except ValueError as error:
            return REFUSAL + str(error).encode()
        except MemoryError:
            raise
        except Exception:  # decoders fail in many ways, and their messages may quote the header
            return REFUSAL + b"the file is malformed and cannot be decoded"
